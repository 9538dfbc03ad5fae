"""The `LightningDataModule`: loads a dataset, tokenises it once, and serves windows."""

from __future__ import annotations

import logging

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from trajectory.data.episodes import Episodes, held_out_episodes
from trajectory.data.goals import HindsightWindows
from trajectory.data.settings import HindsightSettings, TokenizerSettings
from trajectory.data.source import Source
from trajectory.data.tokenization import load_or_tokenize
from trajectory.data.windows import ShuffledBatches, TokenWindows, ValidationBatches
from trajectory.errors import require
from trajectory.ranks import rank, world_size
from trajectory.transition import TransitionLayout

log = logging.getLogger(__name__)


class TrajectoryDataModule(pl.LightningDataModule):
    """Windows of tokens from a dataset.

    After `setup`: `layout`, `discretizer`, `windows`, `card` (the data card, a PNG) and `summary` (id, source,
    behaviour policy, number of episodes and steps, mean, standard deviation and best of the returns, content hash).
    With a validation share, `validation` holds the windows of the held-out episodes. Bins are not fitted to them.

    Args:
        hindsight: how goals are chosen, if the environment has goals.
        validation_share: fraction of the episodes that are held out, chosen by the seed alone.
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
        validation_share: float = 0.0,
    ) -> None:
        super().__init__()
        require(isinstance(batch_size, int) and batch_size >= 1, "data.batch_size", "at least 1", batch_size)
        self.source = source
        self.tokenizer = tokenizer
        self.window = window
        self.batch_size = batch_size
        self.seed = seed
        self.hindsight = hindsight or HindsightSettings()
        self.validation_share = validation_share
        self.windows: TokenWindows | None = None
        self.validation: TokenWindows | None = None

    def setup(self, stage: str | None = None) -> None:
        """Load and tokenise, or take the tokens from the cache. Later calls, which Lightning makes, do nothing.

        Raises:
            UserError: what the source refuses, or a validation share that leaves no episode.
        """
        if self.windows is not None:
            return
        share, seed = self.validation_share, self.seed
        data = load_or_tokenize(self.source, self.tokenizer, validation_share=share, seed=seed)
        self.summary = {name: value for name, value in data.summary.items() if name != "layout"}
        self.layout = TransitionLayout(**data.summary["layout"])
        self.discretizer = data.discretizer
        self.card = data.card
        self.windows = TokenWindows(data.tokens, data.ends, data.terminated, self.window, self.tokenizer.bins)
        self.lengths = np.diff(data.ends, prepend=0)  # of all episodes
        self.episodes = np.arange(len(self.lengths))  # that are trained on
        if share:
            held_out = held_out_episodes(len(data.ends), share, seed)
            self.episodes = np.delete(self.episodes, held_out)
            self.windows, self.validation = self.windows.of(self.episodes), self.windows.of(held_out)

    def training_episodes(self) -> Episodes:
        """The episodes that are trained on, read anew; of large data a random sample, which fits into memory."""
        return self._load(self.episodes)

    def validation_episodes(self) -> Episodes:
        """The held-out episodes, read anew; of large data a random sample.

        Raises:
            UserError: there are none.
        """
        require(self.validation is not None, "data.validation_share", "above 0, to hold episodes out", 0.0)
        return self._load(np.setdiff1d(np.arange(len(self.lengths)), self.episodes))

    def _load(self, episodes: np.ndarray) -> Episodes:
        """Some of the episodes, as many as have at most `tokenizer.exact_rows` transitions together."""
        lengths, most = self.lengths[episodes], self.tokenizer.exact_rows
        if lengths.sum() > most:
            order = np.random.default_rng((self.seed, len(lengths))).permutation(len(lengths))
            chosen = episodes[np.sort(order[: max(1, int((np.cumsum(lengths[order]) <= most).sum()))])]
            log.info(
                "%s: %d of %d episodes, a random sample, are taken into memory",
                self.source.id,
                len(chosen),
                len(episodes),
            )
            episodes = chosen
        return self.source.load(None if len(episodes) == len(self.lengths) else episodes)

    def train_dataloader(self) -> DataLoader:
        """Batches of (tokens, mask), of each this rank's part. Order and goals depend on seed and epoch alone.

        A resumed training begins with the first batch that it has not seen.
        """
        assert self.windows is not None, "setup has not been called"
        seen = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready if self.trainer else 0
        self.batches = ShuffledBatches(len(self.windows), self.batch_size, self.seed, rank(), world_size())
        self.batches.start = seen % len(self.batches)
        return self._loader(self.windows, self.batches)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Shuffled batches of all held-out windows, of each this rank's part; none without a validation share."""
        if self.validation is None:
            return []
        batches = ValidationBatches(len(self.validation), self.batch_size, self.seed, rank(), world_size())
        return self._loader(self.validation, batches)

    def _loader(self, windows: TokenWindows, batches: ShuffledBatches | ValidationBatches) -> DataLoader:
        assert self.windows is not None
        if self.trainer:
            self.windows.to(self.trainer.strategy.root_device)
            windows.tokens = self.windows.tokens  # one copy on a GPU
            windows.to(self.trainer.strategy.root_device)
        goal = self.source.environment.goal
        dataset = windows if goal is None else HindsightWindows(windows, goal, self.hindsight, batches)
        # its own generator: iterators draw from it, and resuming must not change the global one
        return DataLoader(dataset, sampler=batches, batch_size=None, generator=torch.Generator())

    def episodes_of_batch(self, batch: int) -> list[int]:
        """The episodes of the windows in a batch of the current epoch."""
        assert self.windows is not None, "setup has not been called"
        rows = self.batches.rows_of(batch, batch + 1).to(self.windows.ends.device)
        return self.episodes[self.windows.episodes_of(rows).unique().cpu().numpy()].tolist()
