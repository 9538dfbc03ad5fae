"""Episodes to test with, and the files that they come in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pyarrow
from pyarrow import parquet

from trajectory.behaviour.policy import GaussianPolicy
from trajectory.behaviour.record import RecordedEpisode
from trajectory.data.builtin import POLICIES
from trajectory.data.episodes import Episodes
from trajectory.data.store import save_episodes
from trajectory.environments.settings import EnvironmentSettings
from trajectory.spaces import stack

HOPPER = EnvironmentSettings("hopper", "Hopper-v5", reference={"random": -20.272305, "expert": 3234.3})
PENDULUM = EnvironmentSettings("pendulum", "Pendulum-v1")
MAZE = EnvironmentSettings("maze", "gymnasium_robotics:PointMaze_UMaze-v3")
ABOUT = {"algorithm_name": "nobody", "author": "a test", "code_permalink": "tests", "description": "random numbers"}
SHIPPED = sorted(path.name for path in POLICIES.iterdir() if path.is_dir())  # environments with behaviour policies


def shipped(quality: str, environment: str = "hopper") -> GaussianPolicy:
    return GaussianPolicy.load(POLICIES / environment / f"{quality}.safetensors")


def made_up_episodes(count: int, environment: EnvironmentSettings = PENDULUM) -> list[RecordedEpisode]:
    """Random numbers of an environment's shapes; lengths 1, 2, 3, ... and every other episode terminated."""
    env: Any = gymnasium.make(environment.id or "", **environment.kwargs)
    rng = np.random.default_rng(0)

    def numbers(rows: int, space: Any) -> Any:
        space.seed(int(rng.integers(1_000)))
        return stack([space.sample() for _ in range(rows)], space)

    return [
        RecordedEpisode(
            observations=numbers(length + 1, env.observation_space),
            actions=numbers(length, env.action_space),
            rewards=rng.normal(size=length),
            terminated=length % 2 == 0,
        )
        for length in range(1, count + 1)
    ]


def save(dataset_id: str, episodes: Iterable[RecordedEpisode], environment: EnvironmentSettings = PENDULUM) -> None:
    save_episodes(dataset_id, episodes, environment, **ABOUT)


def columns_of(episode: RecordedEpisode, *, final: bool = True) -> dict[str, Any]:
    """An episode as `create_dataset` takes it, with or without the observation after its last action."""
    rows = len(episode.rewards) + final
    given = episode.observations
    cut = {key: part[:rows] for key, part in given.items()} if isinstance(given, dict) else given[:rows]
    return {**vars(episode), "observations": cut}


def flat_columns(episodes: Sequence[RecordedEpisode]) -> dict[str, Any]:
    """Episodes side by side, as D4RL has them."""
    each = [columns_of(episode, final=False) for episode in episodes]
    flat: dict[str, Any] = {name: np.concatenate([one[name] for one in each]) for name in ("actions", "rewards")}
    if isinstance(each[0]["observations"], dict):
        keys = each[0]["observations"]
        flat["observations"] = {key: np.concatenate([one["observations"][key] for one in each]) for key in keys}
    else:
        flat["observations"] = np.concatenate([one["observations"] for one in each])
    flat["terminals"], flat["timeouts"] = (np.zeros(len(flat["rewards"]), dtype=bool) for _ in range(2))
    ends = np.cumsum([len(episode.rewards) for episode in episodes])
    for end, episode in zip(ends, episodes, strict=True):
        flat["terminals" if episode.terminated else "timeouts"][end - 1] = True
    return flat


def write_d4rl(path: Path, columns: dict[str, Any]) -> Path:
    """A raw D4RL file: the columns, and the groups beside them that D4RL's own files have."""
    with h5py.File(path, "w") as file:
        for name, column in columns.items():
            file.create_dataset(name, data=column, compression="gzip" if np.ndim(column) else None)
        file["infos/qpos"] = np.zeros((7, 6))
        file["infos/action_log_probs"] = np.zeros(7)
        file["metadata/algorithm"] = np.bytes_("SAC")
        file["metadata/policy/fc0/weight"] = np.zeros((4, 4))
    return path


def write_npz(folder: Path, episodes: Sequence[RecordedEpisode], *, final: bool = True) -> Path:
    """One .npz per episode, numbered without leading zeros."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, episode in enumerate(episodes):
        columns = columns_of(episode, final=final)
        if isinstance(columns["observations"], dict):
            parts = columns.pop("observations")
            columns |= {f"observations/{key}": part for key, part in parts.items()}
        np.savez(folder / f"episode_{number}.npz", **columns)
    return folder


def write_parquet(folder: Path, episodes: Sequence[RecordedEpisode]) -> Path:
    """One .parquet per episode, one row per step; `terminated` is a flag of each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, episode in enumerate(episodes):
        columns = columns_of(episode, final=False)
        flags = np.zeros(len(episode.rewards), dtype=bool)
        flags[-1] = episode.terminated
        table = {name: column.tolist() for name, column in {**columns, "terminated": flags}.items()}
        parquet.write_table(pyarrow.table(table), folder / f"episode_{number}.parquet")
    return folder


def same_episodes(one: Episodes, other: Episodes) -> bool:
    """Whether all five columns are equal, types included."""
    return one.layout == other.layout and all(
        column.dtype == getattr(other, name).dtype and np.array_equal(column, getattr(other, name))
        for name, column in vars(one).items()
        if name != "choices"
    )


def contents(folder: Path) -> dict[str, bytes | None]:
    """Relative paths of all files and folders, hidden ones included, and the bytes of the files."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
