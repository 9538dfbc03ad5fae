"""Long runs that are watched: python tests/helpers/soak.py loop|agent|deadline MINUTES prints what was measured.

loop: train, evaluate and report again and again in one process. agent: decisions for 32 environments. deadline:
decisions for one within 50 ms, half of the time beside a process that takes the same core.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")]

from helpers.command_line import TINY, run_main_here
from trajectory import TrajectoryAgent

TRAIN = (*TINY, "trainer.max_steps=8", "evaluation.every_n_steps=4", "callbacks.last_checkpoint.every_n_steps=3")
EVALUATE = ("checkpoint=run/last.ckpt", "evaluation.episodes=2", "evaluation.max_steps=9")
REPORT = ("runs=[run,evaluated]", "report.resamples=100")
# plans as experiment=laptop does, after a training of seconds
LAPTOP = (
    *("experiment=laptop", "dataset.steps=2000", "trainer.max_steps=4", "critic.steps=20", "logger=csv"),
    *("evaluation.episodes=1", "evaluation.max_steps=9", "evaluation.every_n_steps=null", "evaluation.video=false"),
)
WANDB_FOLDERS = (".cache/wandb", ".local/share/wandb")  # logs, and tables as `wandb sync` needs them
ENVIRONMENTS, DEADLINE_MS, LATE_MS = 32, 50.0, 60.0


def usage(folder: Path) -> dict[str, int]:
    """What this process holds, and the files below a folder: those of W&B in its own folders, and all others."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "memory_kb": int(status["VmRSS"].split()[0]),
        "handles": len(os.listdir("/proc/self/fd")),
        "threads": int(status["Threads"]),
        "files": count_files(folder) - (of_wandb := sum(count_files(folder / "home" / name) for name in WANDB_FOLDERS)),
        "wandb_files": of_wandb,
    }


def count_files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def growth(samples: list[dict[str, int]]) -> dict[str, dict[str, int]]:
    """Of each measure: the most in the second quarter and in the last."""
    quarter = len(samples) // 4
    parts = {"second quarter": samples[quarter : 2 * quarter], "last quarter": samples[-quarter:]}
    return {name: {part: max(one[name] for one in of) for part, of in parts.items()} for name in samples[0]}


def run(main: str, *overrides: str, folder: Path, name: str) -> None:
    process = run_main_here(main, *overrides, f"hydra.run.dir={name}", folder=folder)
    assert process.returncode == 0, process.stderr


def soak_loop(minutes: float, folder: Path) -> dict[str, Any]:
    """At least eight rounds."""
    samples: list[dict[str, int]] = []
    trim = ctypes.CDLL(None).malloc_trim  # what is free goes back, or its pieces hide what is held
    end = time.monotonic() + 60 * minutes
    while len(samples) < 8 or time.monotonic() < end:
        run("train", *TRAIN, folder=folder, name="run")
        run("evaluate", *EVALUATE, folder=folder, name="evaluated")
        run("report", *REPORT, folder=folder, name="report")
        gc.collect()  # cycles that wait for the collector are no growth
        trim(0)
        samples.append(usage(folder))
        for name in ("run", "evaluated", "report"):
            shutil.rmtree(folder / name)
    return {"rounds": len(samples), **growth(samples)}


def decisions(agent: TrajectoryAgent, count: int, minutes: float, folder: Path) -> dict[str, Any]:
    """Latencies of an agent that plays `count` environments at once, each begun anew when its episode ends."""
    envs: list[Any] = [gymnasium.make("Hopper-v5") for _ in range(count)]
    observations = np.stack([env.reset(seed=seed)[0] for seed, env in enumerate(envs)])
    rewards: np.ndarray | None = None
    agent.reset(count)
    latencies, samples = np.zeros(1_000_000, np.float32), []
    latencies.fill(0)  # its memory is there from the beginning
    made, steps, end = 0, 0, time.monotonic() + 60 * minutes
    while made < 40 or time.monotonic() < end:
        begun = time.perf_counter()
        actions = agent.act(observations, rewards)
        latencies[made] = 1_000 * (time.perf_counter() - begun)
        made, steps = made + 1, steps + 1
        found = [env.step(action) for env, action in zip(envs, actions, strict=True)]
        observations, rewards = np.stack([one[0] for one in found]), np.array([one[1] for one in found])
        if steps == 50 or any(one[2] for one in found):  # all begin together: an episode's history is the agent's own
            observations, rewards, steps = np.stack([env.reset()[0] for env in envs]), None, 0
            agent.reset(count)
        if made % 10 == 0:
            samples.append(usage(folder))
    times = latencies[:made]
    p50, p99 = np.percentile(times, [50, 99])
    late = float((times > LATE_MS).mean())
    summary = {"p50_ms": float(p50), "p99_ms": float(p99), "maximum_ms": float(times.max()), "later_than_60_ms": late}
    return {"environments": count, "decisions": made, **summary, **(growth(samples) if len(samples) >= 4 else {})}


def trained(folder: Path) -> Path:
    run(
        "train",
        *LAPTOP,
        "evaluation.every_n_steps=null",
        "evaluation.video=false",
        "logger=csv",
        folder=folder,
        name="a",
    )
    return folder / "a" / "last.ckpt"


def soak_agent(minutes: float, folder: Path) -> dict[str, Any]:
    return decisions(TrajectoryAgent.from_checkpoint(trained(folder)), ENVIRONMENTS, minutes, folder)


def soak_deadline(minutes: float, folder: Path) -> dict[str, Any]:
    agent = TrajectoryAgent.from_checkpoint(trained(folder), planner={"deadline_ms": DEADLINE_MS})
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    found = {"alone": decisions(agent, 1, minutes / 2, folder)}
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        return found | {"beside another process": decisions(agent, 1, minutes / 2, folder)}
    finally:
        other.kill()
        other.wait()


SOAKS: dict[str, Callable[[float, Path], dict[str, Any]]] = {
    "loop": soak_loop,
    "agent": soak_agent,
    "deadline": soak_deadline,
}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(SOAKS[sys.argv[1]](float(sys.argv[2]), Path(temporary)), indent=1))
