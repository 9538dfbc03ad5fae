/* Writes that fail: loaded before the C library, it counts the calls that change files below FAIL_UNDER, and from call
   FAIL_FROM on lets FAIL_COUNT of them fail with the error FAIL_ERRNO; 0 kills the process there, amid a write. At its
   end a process adds a line with its number of calls to FAIL_TOTAL. Without these variables it changes nothing. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static long calls;
static int code; /* of the error */

static long number(const char *name, long otherwise)
{
    const char *text = getenv(name);
    return text ? atol(text) : otherwise;
}

static int fails(const char *path)
{
    const char *under = getenv("FAIL_UNDER");
    if (!under || !path || strncmp(path, under, strlen(under)) || strstr(path, "/.hydra/"))
        return 0;
    long call = __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED), from = number("FAIL_FROM", 0);
    if (call < from || call >= from + number("FAIL_COUNT", 1000000000))
        return 0;
    code = (int)number("FAIL_ERRNO", ENOSPC);
    return 1;
}

static int fails_fd(int fd)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0)
        return 0;
    path[length] = 0;
    return fails(path);
}

static int fail(void)
{
    if (!code)
        kill(getpid(), SIGKILL);
    errno = code;
    return -1;
}

__attribute__((destructor)) static void tell(void)
{
    const char *path = getenv("FAIL_TOTAL");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (file) {
        fprintf(file, "%ld\n", calls);
        fclose(file);
    }
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define HALF(name, ...) (code ? 0 : NEXT(name)(__VA_ARGS__), fail())

ssize_t write(int fd, const void *data, size_t size) { return fails_fd(fd) ? HALF(write, fd, data, size / 2) : NEXT(write)(fd, data, size); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return fails_fd(fd) ? HALF(pwrite, fd, data, size / 2, at) : NEXT(pwrite)(fd, data, size, at); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { return fails_fd(fd) ? HALF(pwrite64, fd, data, size / 2, at) : NEXT(pwrite64)(fd, data, size, at); }
int fsync(int fd) { return fails_fd(fd) ? fail() : NEXT(fsync)(fd); }
int rename(const char *old, const char *new) { return fails(new) ? fail() : NEXT(rename)(old, new); }

#define OPENS(name)                                                                \
    int name(const char *path, int flags, ...)                                     \
    {                                                                              \
        va_list rest;                                                              \
        va_start(rest, flags);                                                     \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;    \
        va_end(rest);                                                              \
        return flags & (O_WRONLY | O_RDWR) && fails(path) ? fail() : NEXT(name)(path, flags, mode); \
    }
OPENS(open)
OPENS(open64)
