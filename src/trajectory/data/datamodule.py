"""The LightningDataModule: loads a dataset, tokenises it once and serves windows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
from torch.utils.data import DataLoader

from trajectory.data.discretizer import Discretizer
from trajectory.data.episodes import Episodes, load_episodes
from trajectory.data.returns import return_to_go, shape_rewards
from trajectory.data.windows import ShuffledBatches, TokenWindows, tokenize
from trajectory.errors import require


@dataclass(frozen=True)
class TokenizerSettings:
    """How numbers become tokens; the defaults are the published ones.

    Args:
        binning: "quantile" or "uniform".
        bins: N, tokens per dimension.
        discount: of the return-to-go.
        terminal_reward: replaces the reward of the last transition of a terminated episode; None keeps it.
    """

    binning: str = "quantile"
    bins: int = 100
    discount: float = 0.99
    terminal_reward: float | None = -100.0

    def __post_init__(self) -> None:
        require(self.binning in ("quantile", "uniform"), "tokenizer.binning", "quantile or uniform", self.binning)
        require(self.bins >= 2, "tokenizer.bins", "at least 2", self.bins)
        require(0 <= self.discount < 1, "tokenizer.discount", "at least 0 and below 1", self.discount)


class TrajectoryDataModule(pl.LightningDataModule):
    """Windows of a Minari dataset as tokens.

    After `setup`: `layout`, `discretizer`, `windows` and `summary` (id, source, number of episodes and steps, mean,
    standard deviation and best of the returns, content hash).
    """

    def __init__(
        self, dataset_id: str, source: str, tokenizer: TokenizerSettings, *, window: int, batch_size: int, seed: int
    ) -> None:
        super().__init__()
        require(isinstance(batch_size, int) and batch_size >= 1, "trainer.batch_size", "at least 1", batch_size)
        self.dataset_id = dataset_id
        self.source = source
        self.tokenizer = tokenizer
        self.window = window
        self.batch_size = batch_size
        self.seed = seed
        self.windows: TokenWindows | None = None

    def setup(self, stage: str | None = None) -> None:
        """Load, fit the bins and tokenise; done once, however often Lightning calls it."""
        if self.windows is not None:
            return
        self.episodes = episodes = load_episodes(self.dataset_id)
        self.layout = episodes.layout
        self.summary = summarize(episodes, self.dataset_id, self.source)
        rewards = shape_rewards(episodes, self.tokenizer.terminal_reward)
        values = return_to_go(rewards, episodes.ends, episodes.terminated, self.tokenizer.discount)
        columns = [*episodes.observations.T, *episodes.actions.T, rewards, values]
        self.discretizer = Discretizer.fit(columns, self.tokenizer.bins, self.tokenizer.binning, self.layout)
        tokens = tokenize(episodes, rewards, values, self.discretizer)
        self.windows = TokenWindows(tokens, episodes.ends, episodes.terminated, self.window, self.tokenizer.bins)

    def train_dataloader(self) -> DataLoader:
        """Batches of (tokens, mask), gathered by index; their order depends on seed and epoch alone."""
        assert self.windows is not None, "setup has not been called"
        batches = ShuffledBatches(len(self.windows), self.batch_size, self.seed)
        return DataLoader(self.windows, sampler=batches, batch_size=None)


def summarize(episodes: Episodes, dataset_id: str, source: str) -> dict[str, Any]:
    """What stands in checkpoints and results about the data; plain numbers and strings."""
    returns = episodes.returns()
    digest = hashlib.sha256()
    for column in (episodes.observations, episodes.actions, episodes.rewards, episodes.ends, episodes.terminated):
        digest.update(np.ascontiguousarray(column).data)
    return {
        "id": dataset_id,
        "source": source,
        "episodes": len(episodes),
        "steps": len(episodes.rewards),
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "return_max": float(returns.max()),
        "terminated_share": float(episodes.terminated.mean()),
        "content_hash": digest.hexdigest()[:16],
    }
