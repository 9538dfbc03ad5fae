"""Processes without the seconds that imports take: forked from one that has imported what the mains import.

As a script this is the server: it imports, then forks for every request that comes through its socket. Below each
process stands a keeper, which forks it, waits for it and tells how it ended.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Self

IMPORTED = (
    *("gymnasium.envs.mujoco", "imageio", "hydra.main", "hydra.core.plugins"),
    *("trajectory.training.run", "trajectory.evaluation.evaluate", "trajectory.analysis.analyze"),
    *("trajectory.data.collect", "trajectory.reporting.report"),
)
LIGHT = ("hydra.main", "hydra.core.plugins", "trajectory.settings")  # what all commands import before their checks
REQUEST = 1 << 20  # bytes of a request at most
HELD = Path(__file__).parent / "held" / "sitecustomize.py"


class Forked:
    """What tests use of `subprocess.Popen`, of a process that the server forks.

    Args:
        args: of the command line: a Python file and what follows it.
        cwd: its working folder.
        env: all its environment variables.
        most_bytes: that a file may grow to; None for no limit.
        limits: others of the process, by the name of their constant in `resource`.
        preload: a library that is loaded before all others.
        light: whether nothing heavy is imported yet. What is imported then is told on stderr, as `-X importtime` does.
    """

    def __init__(
        self,
        args: list[str],
        cwd: Path,
        env: dict[str, str],
        most_bytes: int | None = None,
        limits: dict[str, int] | None = None,
        preload: Path | None = None,
        light: bool = False,
    ) -> None:
        self.args, self.returncode = args, None
        self._keeper, keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        (read_out, out), (read_err, err) = os.pipe(), os.pipe()
        self.stdout, self.stderr = os.fdopen(read_out), os.fdopen(read_err)
        limits = (limits or {}) | ({} if most_bytes is None else {"RLIMIT_FSIZE": most_bytes})
        request = json.dumps({"args": args, "cwd": str(cwd), "env": env, "limits": limits}).encode()
        assert len(request) < REQUEST
        socket.send_fds(_server(preload, light), [request], [keeper.fileno(), out, err])
        keeper.close()
        os.close(out)
        os.close(err)
        self.pid = int(self._keeper.recv(64))

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._keeper], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = int(self._keeper.recv(64))
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        streams: list[IO[str]] = [self.stdout, self.stderr]
        with ThreadPoolExecutor(2) as readers:
            reading = [readers.submit(stream.read) for stream in streams]
            try:
                out, err = (each.result(timeout) for each in reading)
            except BaseException:
                self.kill()
                raise
        self.wait()
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it may end before the signal comes
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stdout.close()
        self.stderr.close()
        self.wait()
        self._keeper.close()


@cache
def _server(preload: Path | None, light: bool) -> socket.socket:
    """The socket of the server with that library, which ends when this process does."""
    variables = {"PYTHONPROFILEIMPORTTIME": "1"} if light else {}
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    subprocess.Popen(
        [sys.executable, __file__, str(theirs.fileno()), *(LIGHT if light else ())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL if light else None,
        env=os.environ | variables | ({} if preload is None else {"LD_PRELOAD": str(preload)}),
    )
    theirs.close()
    return ours


def _serve(requests: socket.socket) -> dict[str, Any]:
    """Returns in every forked process, with its request; the server itself never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, REQUEST, 3)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            requests.close()
            return _keep(json.loads(message), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _keep(request: dict[str, Any], keeper: int, out: int, err: int) -> dict[str, Any]:
    """Returns in the process that the keeper forks; the keeper itself ends after it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(keeper)
        os.dup2(out, 1)
        os.dup2(err, 2)
    os.close(out)
    os.close(err)
    if pid == 0:
        return request
    os.write(keeper, str(pid).encode())
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.write(keeper, str(code).encode())
    os._exit(0)


def _become(request: dict[str, Any]) -> None:
    """Make this process what a new one would be that was started so."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored below a shell's background job
    for name, most in request["limits"].items():
        resource.setrlimit(getattr(resource, name), (most, most))
    sys.argv[:] = request["args"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    if "HOLD_AT" in os.environ:
        runpy.run_path(str(HELD))


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2] / "src")
    light = sys.argv[2:]
    if not light:
        import_module("trajectory.environments.make").choose_gl()
    for module in light or IMPORTED:
        import_module(module)
    gc.collect()
    gc.freeze()
    _become(_serve(socket.socket(fileno=int(sys.argv[1]))))
    runpy.run_path(sys.argv[0], run_name="__main__")
