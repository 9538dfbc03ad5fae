from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from trajectory.data.discretizer import Discretizer
from trajectory.data.episodes import Episodes
from trajectory.data.windows import CHUNK, ShuffledBatches, TokenWindows, token_dtype, tokenize

STOP = 200


def numbered_windows(lengths: list[int], terminated: list[bool], window: int) -> TokenWindows:
    """Windows over transitions of two tokens: the row's number and its episode's number."""
    ends = np.cumsum(lengths)
    episode = np.repeat(np.arange(len(lengths)), lengths)
    tokens = torch.from_numpy(np.stack([np.arange(ends[-1]), episode], axis=1)).to(torch.uint8)
    return TokenWindows(tokens, ends, np.array(terminated), window, STOP)


def slow_window(
    lengths: list[int], terminated: list[bool], window: int, start: int
) -> tuple[list[list[int]], list[bool]]:
    """One window, transition by transition, with its mask."""
    rows = [(row, episode) for episode, length in enumerate(lengths) for row in [None] * length]
    episode = rows[start][1]
    tokens, mask = [], []
    for row in range(start, start + window):
        inside = row < len(rows) and rows[row][1] == episode
        tokens.append([row, episode] if inside else [STOP, STOP])
        mask.append(inside or terminated[episode])
    return tokens, mask


@settings(deadline=None, max_examples=50)
@given(
    episodes=st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=8),
    window=st.integers(1, 15),
)
def test_no_window_crosses_an_episode(episodes: list[tuple[int, bool]], window: int) -> None:
    lengths, terminated = [length for length, _ in episodes], [over for _, over in episodes]
    windows = numbered_windows(lengths, terminated, window)
    assert len(windows) == sum(lengths)
    tokens, mask = windows[torch.arange(len(windows))]
    for start in range(len(windows)):
        expected_tokens, expected_mask = slow_window(lengths, terminated, window, start)
        assert tokens[start].tolist() == expected_tokens
        assert mask[start].tolist() == expected_mask


def test_stop_tokens_count_after_a_termination_but_not_after_a_time_limit() -> None:
    windows = numbered_windows([3, 3], [True, False], window=4)
    tokens, mask = windows[torch.tensor([1, 4])]
    assert (tokens[:, 2:] == STOP).all()
    assert mask.tolist() == [[True, True, True, True], [True, True, False, False]]


def test_windows_keep_the_tokens_type() -> None:
    tokens, mask = numbered_windows([5], [True], window=3)[torch.tensor([0, 4])]
    assert tokens.dtype is torch.uint8
    assert mask.dtype is torch.bool


@pytest.mark.parametrize(
    ("bins", "dtype"),
    [(2, torch.uint8), (255, torch.uint8), (256, torch.int16), (32_767, torch.int16), (32_768, torch.int32)],
)
def test_the_smallest_type_that_holds_the_stop_token(bins: int, dtype: torch.dtype) -> None:
    assert token_dtype(bins) is dtype
    assert torch.tensor(bins).to(dtype).item() == bins


@pytest.mark.parametrize("bins", [100, 300])
def test_tokenize_is_encode_of_all_columns_in_their_order(bins: int) -> None:
    """With more rows than are encoded at a time."""
    rows = CHUNK + 1_000
    rng = np.random.default_rng(0)
    episodes = Episodes(
        observations=rng.normal(size=(rows, 1)).astype(np.float32),
        actions=rng.uniform(-1, 1, (rows, 1)).astype(np.float32),
        rewards=np.zeros(rows, dtype=np.float32),
        ends=np.array([rows]),
        terminated=np.array([True]),
    )
    rewards, values = rng.normal(size=rows), rng.normal(100, 20, rows)
    columns = [episodes.observations[:, 0], episodes.actions[:, 0], rewards, values]
    discretizer = Discretizer.fit(columns, bins, "quantile", episodes.layout)
    tokens = tokenize(episodes, rewards, values, discretizer)
    assert tokens.dtype is token_dtype(bins)
    for dimension, column in enumerate(columns):
        numbers = torch.from_numpy(column.astype(np.float32))[:, None]
        expected = discretizer.encode(numbers, slice(dimension, dimension + 1))[:, 0]
        assert torch.equal(tokens[:, dimension].long(), expected)


def rows_of(batches: ShuffledBatches, epoch: int) -> list[int]:
    batches.set_epoch(epoch)
    return torch.cat(list(batches)).tolist()


def test_every_row_once_per_epoch() -> None:
    batches = ShuffledBatches(60, 12, seed=0)
    assert [len(batch) for batch in batches] == [12] * 5
    assert sorted(rows_of(batches, 0)) == list(range(60))
    assert rows_of(batches, 0) != list(range(60))


def test_the_last_short_batch_is_dropped() -> None:
    batches = ShuffledBatches(65, 12, seed=0)
    assert [len(batch) for batch in batches] == [12] * len(batches) == [12] * 5
    assert len(set(rows_of(batches, 0))) == 60


def test_fewer_rows_than_a_batch_are_one_batch() -> None:
    (batch,) = ShuffledBatches(5, 12, seed=0)
    assert sorted(batch.tolist()) == list(range(5))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    first = rows_of(ShuffledBatches(60, 12, seed=3), 2)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert rows_of(ShuffledBatches(60, 12, seed=3), 2) == first
    assert torch.equal(torch.get_rng_state(), before), "the global RNG is left alone"
    assert rows_of(ShuffledBatches(60, 12, seed=3), 1) != first
    assert rows_of(ShuffledBatches(60, 12, seed=4), 2) != first


class _Seen(pl.LightningModule):
    """Learns nothing and remembers the first token of every window that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.epochs: list[list[int]] = []

    def on_train_epoch_start(self) -> None:
        self.epochs.append([])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        self.epochs[-1] += batch[0][:, 0, 0].tolist()

    def configure_optimizers(self) -> Any:
        return None


@pytest.mark.filterwarnings("ignore")
def test_lightning_sets_the_epoch() -> None:
    windows = numbered_windows([20, 20], [True, False], window=3)
    loader = DataLoader(windows, sampler=ShuffledBatches(40, 10, seed=0), batch_size=None)
    module = _Seen()
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    assert module.epochs == [rows_of(ShuffledBatches(40, 10, seed=0), epoch) for epoch in range(3)]
