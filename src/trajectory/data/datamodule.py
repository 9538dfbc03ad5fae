"""The LightningDataModule: loads a dataset, tokenises it once and serves windows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from trajectory.data.cache import TokenizedData, cache_key, load_tokens, save_tokens, token_lock
from trajectory.data.card import draw_card
from trajectory.data.discretizer import Discretizer
from trajectory.data.episodes import Episodes
from trajectory.data.goals import HindsightSettings, HindsightWindows
from trajectory.data.returns import return_to_go, shape_rewards
from trajectory.data.source import Source
from trajectory.data.windows import ShuffledBatches, TokenWindows, tokenize
from trajectory.distributed import rank, world_size
from trajectory.errors import require
from trajectory.hardware import release_memory
from trajectory.progress import progress_bar
from trajectory.transition import TransitionLayout


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
    """Windows of a dataset as tokens.

    After `setup`: `layout`, `discretizer`, `windows`, `card` (the data card, a PNG) and `summary` (id, source,
    behaviour policy, number of episodes and steps, mean, standard deviation and best of the returns, content hash).

    Args:
        hindsight: how goals are chosen, where the environment has goals.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: TokenizerSettings,
        *,
        window: int,
        batch_size: int,
        seed: int,
        hindsight: HindsightSettings | None = None,
    ) -> None:
        super().__init__()
        require(isinstance(batch_size, int) and batch_size >= 1, "trainer.batch_size", "at least 1", batch_size)
        self.source = source
        self.tokenizer = tokenizer
        self.window = window
        self.batch_size = batch_size
        self.seed = seed
        self.hindsight = hindsight or HindsightSettings()
        self.windows: TokenWindows | None = None

    def setup(self, stage: str | None = None) -> None:
        """Load and tokenise, or find the tokens of an earlier start; done once, however often Lightning calls it."""
        if self.windows is not None:
            return
        key = cache_key(self.source.files, {"source": self.source.about(), "tokenizer": asdict(self.tokenizer)})
        data = load_tokens(key)
        if data is None:
            with token_lock(key, self.source.id):
                data = load_tokens(key)
                if data is None:
                    data = tokenize_source(self.source, self.tokenizer)
                    release_memory()
                    save_tokens(key, data)
        self.summary = {name: value for name, value in data.summary.items() if name != "layout"}
        self.layout = TransitionLayout(**data.summary["layout"])
        self.discretizer = data.discretizer
        self.card = data.card
        self.windows = TokenWindows(data.tokens, data.ends, data.terminated, self.window, self.tokenizer.bins)

    def train_dataloader(self) -> DataLoader:
        """This rank's parts of batches of (tokens, mask), whose order and goals depend on seed and epoch alone.

        A training that Lightning continues from a checkpoint begins with the first batch that it has not seen.
        """
        assert self.windows is not None, "setup has not been called"
        if self.trainer:
            self.windows.to(self.trainer.strategy.root_device)
        seen = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready if self.trainer else 0
        self.batches = ShuffledBatches(len(self.windows), self.batch_size, self.seed, rank(), world_size())
        self.batches.start = seen % len(self.batches)
        goal = self.source.environment.goal
        windows = self.windows if goal is None else HindsightWindows(self.windows, goal, self.hindsight, self.batches)
        # a generator of its own: an iterator draws from it, which must not depend on where a training was continued
        return DataLoader(windows, sampler=self.batches, batch_size=None, generator=torch.Generator())

    def episodes_of_batch(self, batch: int) -> list[int]:
        """The episodes that the windows of a batch of the present epoch are cut from."""
        assert self.windows is not None, "setup has not been called"
        rows = self.batches.rows_of(batch, batch + 1).to(self.windows.ends.device)
        return self.windows.episodes_of(rows).unique().tolist()


def tokenize_source(source: Source, settings: TokenizerSettings) -> TokenizedData:
    """Load a dataset, fit the bins and tokenise, one column at a time: beside the data, a few columns of memory.

    Raises:
        UserError: what the source refuses.
    """
    episodes = source.load()
    summary = {**summarize(episodes, source), "layout": asdict(episodes.layout)}
    rewards = shape_rewards(episodes, settings.terminal_reward)
    values = return_to_go(rewards, episodes.ends, episodes.terminated, settings.discount)
    columns = [*episodes.observations.T, *episodes.actions.T, rewards, values]
    progress = progress_bar(columns, desc=f"fitting bins of {source.id}", unit="column", leave=False)
    discretizer = Discretizer.fit(progress, settings.bins, settings.binning, episodes.layout)
    tokens = tokenize(episodes, rewards, values, discretizer)
    card = draw_card(episodes, summary)
    return TokenizedData(tokens, episodes.ends, episodes.terminated, discretizer, summary, card)


def summarize(episodes: Episodes, source: Source) -> dict[str, Any]:
    """What stands in checkpoints and results about the data; plain numbers and strings."""
    returns = episodes.returns()
    return {
        "id": source.id,
        "source": source.kind,
        "behaviour": source.behaviour,
        "episodes": len(episodes),
        "steps": len(episodes.rewards),
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "return_max": float(returns.max()),
        "terminated_share": float(episodes.terminated.mean()),
        "content_hash": episodes.content_hash(),
    }
