/* A clock that jumps: loaded before the C library, it moves the time of day at every tenth call by up to a year, back and
   forth. CLOCK_JUMPS is the seed of the jumps; without it nothing is changed. Other clocks go on as they do. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static unsigned long calls, state;

static long jumped(void)
{
    const char *seed = getenv("CLOCK_JUMPS");
    if (!seed)
        return 0;
    if (!calls)
        state = strtoul(seed, NULL, 10) + 1;
    if (calls++ % 10 == 0)
        state = state * 6364136223846793005UL + 1442695040888963407UL;
    return -(long)((state >> 33) % (365L * 24 * 3600)); /* files on the disk are then from the future */
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int clock_gettime(clockid_t clock, struct timespec *now)
{
    static __typeof__(&clock_gettime) next;
    if (!next)
        next = NEXT(clock_gettime);
    int failed = next(clock, now);
    if (!failed && clock == CLOCK_REALTIME)
        now->tv_sec += jumped();
    return failed;
}

int gettimeofday(struct timeval *now, void *zone)
{
    int failed = NEXT(gettimeofday)(now, zone);
    if (!failed)
        now->tv_sec += jumped();
    return failed;
}

time_t time(time_t *now)
{
    time_t found = NEXT(time)(NULL) + jumped();
    if (now)
        *now = found;
    return found;
}
