"""Random episodes in columns, and a source of them that counts how often it is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from helpers.example_data import PENDULUM
from trajectory.data.episodes import Episodes
from trajectory.data.source import Source
from trajectory.data.windows import TokenWindows

STOP = 200  # the token, in `numbered_windows`


def random_episodes(lengths: Sequence[int], terminated: Sequence[bool], seed: int = 0) -> Episodes:
    """Normal numbers of Pendulum's dimensions, a fifth of the actions saturated."""
    rng = np.random.default_rng(seed)
    rows = sum(lengths)
    return Episodes(
        observations=rng.normal(size=(rows, 3)).astype(np.float32),
        actions=np.clip(rng.normal(0, 0.8, (rows, 1)), -1, 1).astype(np.float32),
        rewards=rng.normal(size=rows).astype(np.float32),
        ends=np.cumsum(lengths),
        terminated=np.array(terminated),
    )


class Reader:
    """Reads what `write_episodes` wrote; `times` counts."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, path: Path) -> Episodes:
        self.times += 1
        with np.load(path) as file:
            return Episodes(**file)


class PartsReader(Reader):
    """Reads some episodes at a time, as often as it is asked to.

    Args:
        episodes: in each part.
    """

    def __init__(self, episodes: int = 3) -> None:
        super().__init__()
        self.episodes = episodes

    def __call__(self, path: Path) -> Iterator[Episodes]:  # ty: ignore[incompatible-method-override]
        whole = super().__call__(path)
        for first in range(0, len(whole), self.episodes):
            yield whole.select(np.arange(first, min(first + self.episodes, len(whole))))


def write_episodes(path: Path, episodes: Episodes) -> Path:
    np.savez(path, **{name: column for name, column in vars(episodes).items() if name != "choices"})
    return path


def source_of(path: Path, reader: Reader, **changes: str) -> Source:
    """A source of one file.

    Args:
        changes: other `id` or `behaviour`.
    """
    about = {"id": "test/random-v0", "behaviour": "nobody", **changes}
    return Source(kind="own", environment=PENDULUM, files=[path], read=reader, options={"path": path}, **about)


def numbered_windows(lengths: list[int], terminated: list[bool], window: int) -> TokenWindows:
    """Windows over transitions of two tokens: the row's number and its episode's number."""
    ends = np.cumsum(lengths)
    episode = np.repeat(np.arange(len(lengths)), lengths)
    tokens = torch.from_numpy(np.stack([np.arange(ends[-1]), episode], axis=1)).to(torch.uint8)
    return TokenWindows(tokens, ends, np.array(terminated), window, STOP)
