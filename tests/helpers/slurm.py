"""A real SLURM of one machine, from Debian's packages, without systemd; its daemons end with the block."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

SETTINGS = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
SchedulerParameters=batch_sched_delay=0,sched_interval=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

LAST_RESORT_S = 600.0  # for what a busy machine takes long to do


@contextmanager
def one_machine_slurm(folder: Path) -> Generator[dict[str, str]]:
    """Start it with all that it writes in `folder`; the environment variables by which commands find it."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    host = socket.gethostname().partition(".")[0]
    ports = dict(zip(("port", "node_port"), _free_ports(2), strict=True))
    text = SETTINGS.format(host=host, folder=folder, cpus=os.cpu_count(), **ports)
    (folder / "slurm.conf").write_text(text)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    variables = {"SLURM_CONF": str(folder / "slurm.conf")}
    files = {name: folder / f"munge.{name}" for name in ("socket", "pid", "log", "seed")}
    munged = [_program("munged"), "--force", "--foreground", f"--socket={files['socket']}"]
    munged += [f"--pid-file={files['pid']}", f"--log-file={files['log']}", f"--seed-file={files['seed']}"]
    commands = [
        [*munged, f"--key-file={folder / 'munge.key'}"],
        [_program("slurmctld"), "-D"],
        [_program("slurmd"), "-D", "-N", host],
    ]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for number, command in enumerate(commands):
            with (folder / f"daemon{number}.log").open("wb") as log:
                environment = {**os.environ, **variables}
                daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            if number == 0:
                _wait(files["socket"].exists, daemons)
        _wait(lambda: "idle" in said("sinfo", "--noheader", "--format=%T", **variables), daemons)
        yield variables
    finally:
        with suppress(OSError):
            said("scancel", "--full", f"--user={os.getuid()}", **variables)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(60)
            daemon.kill()
            daemon.wait()


def _program(name: str) -> str:
    """The path of a daemon, which ordinary users' PATH lacks."""
    return shutil.which(name) or f"/usr/sbin/{name}"


def said(*command: str, **variables: str) -> str:
    """What a command of SLURM prints."""
    environment = {**os.environ, **variables}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=LAST_RESORT_S
    ).stdout


def _wait(condition: Callable[[], bool], daemons: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask again and again, as long as all daemons are there."""
    end = time.monotonic() + LAST_RESORT_S
    while not condition():
        for daemon in daemons:
            assert daemon.poll() is None, f"{daemon.args} ended with {daemon.returncode}"
        assert time.monotonic() < end, "a daemon of SLURM does not come up"
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    """Below those that the system hands out at any moment; processes of about the same time begin at others."""
    found: list[int] = []
    port = 10_000 + count * (os.getpid() % 10_000)
    while len(found) < count:
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            found.append(port)
        port += 1
    return found
