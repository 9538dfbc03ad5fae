from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torch.utils.data import DataLoader

from helpers.synthetic_data import STOP, numbered_windows, random_episodes
from trajectory.data.discretizer import Discretizer
from trajectory.data.episodes import Episodes
from trajectory.data.windows import BLOCK, ShuffledBatches, ValidationBatches, permute, token_dtype, tokenize


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


@settings(deadline=None, max_examples=50)
@given(
    episodes=st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.booleans()), min_size=1, max_size=8),
    window=st.integers(1, 12),
)
def test_windows_of_some_episodes_are_those_of_all(episodes: list[tuple[int, bool, bool]], window: int) -> None:
    """Also of some of some."""
    lengths, terminated = [length for length, _, _ in episodes], [over for _, over, _ in episodes]
    chosen = [one for _, _, one in episodes]
    windows = numbered_windows(lengths, terminated, window)
    keep = np.flatnonzero(chosen)
    if len(keep) == 0:
        return
    some = windows.of(np.arange(int(keep[-1]) + 1)).of(keep)
    rows = torch.from_numpy(np.flatnonzero(np.repeat(chosen, lengths)))
    for part, whole in zip(some[torch.arange(len(some))], windows[rows], strict=True):
        assert torch.equal(part, whole)
    assert torch.equal(some.first_of(torch.arange(len(some))), windows.tokens[rows])
    assert some.tokens.data_ptr() == windows.tokens.data_ptr()


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


def encoded(columns: list[np.ndarray], discretizer: Discretizer) -> Tensor:
    """(T, D) tokens, one column after the other through `encode`."""
    tokens = []
    for dimension, column in enumerate(columns):
        numbers = torch.from_numpy(column.astype(np.float32))[:, None]
        tokens.append(discretizer.encode(numbers, slice(dimension, dimension + 1)))
    return torch.cat(tokens, dim=1)


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
often = st.sampled_from([-1.0, 0.0, 1.0, 3.0e38, -3.0e38, 1.0e-45])
evenly = st.integers(0, 400).map(lambda number: number / 8)


@settings(deadline=None, max_examples=40)
@given(
    data=arrays(np.float32, st.tuples(st.integers(1, 350), st.just(4)), elements=finite | often | evenly),
    bins=st.sampled_from([2, 3, 100, 129, 255, 256, 300, 40_000]),
    binning=st.sampled_from(["quantile", "uniform"]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_tokenize_is_encode(data: np.ndarray, bins: int, binning: str, dtype: type) -> None:
    episodes = Episodes(data[:, :1], data[:, 1:2], data[:, 2], np.array([len(data)]), np.array([True]))
    rewards, values = data[:, 2].astype(dtype), data[:, 3].astype(dtype)
    columns = [data[:, 0], data[:, 1], rewards, values]
    discretizer = Discretizer.fit(columns, bins, binning, episodes.layout)
    tokens = tokenize(columns, discretizer)
    assert tokens.dtype is token_dtype(bins)
    assert torch.equal(tokens.long(), encoded(columns, discretizer))


@pytest.mark.parametrize("bins", [100, 300])
def test_tokenize_of_more_rows_than_are_encoded_at_a_time(bins: int) -> None:
    rows = 2 * BLOCK + 1_000
    rng = np.random.default_rng(0)
    episodes = random_episodes([rows], [True])
    rewards, values = rng.normal(size=rows), rng.normal(100, 20, rows)
    columns = [*episodes.observations.T, *episodes.actions.T, rewards, values]
    discretizer = Discretizer.fit(columns, bins, "quantile", episodes.layout)
    tokens = tokenize(columns, discretizer)
    assert torch.equal(tokens.long(), encoded(columns, discretizer))


def test_tokenize_of_numbers_that_the_bins_were_not_fitted_to() -> None:
    """The outermost bins take what is outside."""
    seen, other = random_episodes([500], [True]), random_episodes([500], [True], seed=1)
    columns, others = ([*one.observations.T, *one.actions.T, one.rewards, one.rewards] for one in (seen, other))
    discretizer = Discretizer.fit(columns, 100, "quantile", seen.layout)
    other.observations[:3] *= 1e9
    tokens = tokenize(others, discretizer)
    assert set(tokens[:3, :3].flatten().tolist()) == {0, 99}
    assert torch.equal(tokens.long(), encoded(others, discretizer))


def test_a_window_as_long_as_all_data() -> None:
    tokens, mask = numbered_windows([3], [True], window=50)[torch.tensor([0, 2])]
    assert tokens[:, :, 0].tolist() == [[0, 1, 2, *[STOP] * 47], [2, *[STOP] * 49]]
    assert mask.all()


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


@settings(deadline=None, max_examples=50)
@given(rows=st.integers(1, 300), batch_size=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
def test_no_row_twice_in_an_epoch(rows: int, batch_size: int, seed: int) -> None:
    seen = rows_of(ShuffledBatches(rows, batch_size, seed), 0)
    assert len(set(seen)) == len(seen) == rows - rows % min(batch_size, rows)
    assert set(seen) <= set(range(rows))


def test_every_row_once_where_the_order_is_computed_in_parts() -> None:
    rows = 3 * BLOCK + 1
    assert sorted(rows_of(ShuffledBatches(rows, 1, seed=0), 0)) == list(range(rows))


def test_an_epochs_order_does_not_depend_on_the_batch_size() -> None:
    orders = [rows_of(ShuffledBatches(600, batch_size, seed=0), 1) for batch_size in (1, 7, 600)]
    assert orders[1] == orders[0][: 7 * (600 // 7)]
    assert orders[2] == orders[0]


def test_shuffled_is_a_permutation_for_few_rows() -> None:
    for rows in range(1, 301):
        order = permute(np.arange(rows), rows, (rows, 0))
        np.testing.assert_array_equal(np.sort(order), np.arange(rows))


@pytest.mark.parametrize("rows", [2**16, 2**16 + 1, 10_000_000, 2**40 - 1])
def test_shuffled_is_one_to_one_for_many_rows(rows: int) -> None:
    """Different positions in the first, the last and the middle of the rows are sent to different places."""
    positions = np.unique(np.concatenate([np.arange(20_000), rows - 1 - np.arange(20_000), rows // 2 + np.arange(9)]))
    order = permute(positions, rows, (0, 0))
    assert order.dtype == np.int64
    assert order.min() >= 0
    assert order.max() < rows
    assert len(np.unique(order)) == len(positions)


def test_shuffled_positions_can_be_asked_for_in_any_parts() -> None:
    whole = permute(np.arange(1_000), 1_000, (5, 6))
    parts = [permute(np.arange(start, start + 125), 1_000, (5, 6)) for start in range(0, 1_000, 125)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(permute(np.array([999, 0]), 1_000, (5, 6)), whole[[999, 0]])


def test_another_key_is_another_order() -> None:
    orders = {tuple(permute(np.arange(50), 50, (seed, epoch))) for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400


@pytest.mark.parametrize("rows", [2, 3, 4, 5, 6, 9, 16, 17])
def test_every_row_lands_everywhere_about_equally_often(rows: int) -> None:
    """Chi-square over many keys; each row of counts has rows - 1 degrees of freedom."""
    keys = 3_000
    landed = np.zeros((rows, rows))
    for key in range(keys):
        landed[np.arange(rows), permute(np.arange(rows), rows, (key, 0))] += 1
    expected = keys / rows
    freedom = (rows - 1) ** 2
    chi_square = ((landed - expected) ** 2 / expected).sum()
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom) + 5


@pytest.mark.parametrize("rows", [3, 4])
def test_every_permutation_of_few_rows_appears_about_equally_often(rows: int) -> None:
    keys = 3_000
    orders = Counter(tuple(permute(np.arange(rows), rows, (key, 0)).tolist()) for key in range(keys))
    expected = keys / math.factorial(rows)
    assert len(orders) == math.factorial(rows)
    assert 0.5 * expected < min(orders.values())
    assert max(orders.values()) < 2 * expected


def test_neighbours_are_torn_apart() -> None:
    """Distances between the places of neighbouring positions are those of independent ones: a third of the rows."""
    rows = 100_003
    order = permute(np.arange(rows), rows, (0, 0))
    assert np.abs(np.diff(order)).mean() == pytest.approx(rows / 3, rel=0.02)
    assert abs(np.corrcoef(np.arange(rows), order)[0, 1]) < 0.02
    # as many in every part of the rows, whichever part they come from
    counts = np.histogram2d(np.arange(rows), order, bins=10)[0]
    assert counts.min() > 0.85 * rows / 100
    assert counts.max() < 1.15 * rows / 100


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


@settings(deadline=None, max_examples=50)
@given(rows=st.integers(1, 200), batch_size=st.integers(1, 50), ranks=st.integers(1, 3))
def test_validation_takes_every_row_once_and_ranks_take_parts(rows: int, batch_size: int, ranks: int) -> None:
    parts = [list(ValidationBatches(rows, batch_size, 3, rank, ranks)) for rank in range(ranks)]
    assert {len(part) for part in parts} == {len(ValidationBatches(rows, batch_size, 3, 0, ranks))}
    rest = rows % batch_size
    seen = torch.cat([torch.cat(batch) for batch in zip(*parts, strict=True)]) if parts[0] else torch.empty(0)
    expected = permute(np.arange(rows), rows, (3,))[: rows - (rest if rest < ranks else 0)]
    if batch_size >= ranks:
        assert seen.tolist() == expected.tolist()


def test_validation_of_more_rows_than_are_permuted_at_a_time() -> None:
    rows = torch.cat(list(ValidationBatches(2 * BLOCK + 5, 7, seed=0))).numpy()
    np.testing.assert_array_equal(rows, permute(np.arange(2 * BLOCK + 5), 2 * BLOCK + 5, (0,)))


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
