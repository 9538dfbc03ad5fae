from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import trajectory.data.discretizer
from trajectory.data.discretizer import MAX_ATOM_FRACTION, MIN_ATOM_FRACTION, Discretizer
from trajectory.errors import UserError
from trajectory.transition import TransitionLayout

LAYOUT = TransitionLayout(2, 1)
BINNINGS = ("quantile", "uniform")

numbers = st.floats(-1e6, 1e6, width=32)
columns = arrays(np.float32, st.integers(1, 150), elements=st.sampled_from([-1.0, 0.0, 1.0]) | numbers)


def fit(column: np.ndarray, bins: int, binning: str) -> Discretizer:
    return Discretizer.fit([column], bins, binning, LAYOUT)


def encode(discretizer: Discretizer, column: np.ndarray) -> np.ndarray:
    return discretizer.encode(torch.from_numpy(column)[:, None])[:, 0].numpy()


def decode(discretizer: Discretizer, tokens: np.ndarray) -> np.ndarray:
    return discretizer.decode(torch.from_numpy(tokens)[:, None])[:, 0].numpy()


def round_trip(column: np.ndarray, bins: int, binning: str) -> np.ndarray:
    discretizer = fit(column, bins, binning)
    return decode(discretizer, encode(discretizer, column))


@settings(deadline=None, max_examples=50)
@given(column=columns, bins=st.integers(2, 20), binning=st.sampled_from(BINNINGS))
def test_a_round_trip_stays_within_the_bin(column: np.ndarray, bins: int, binning: str) -> None:
    discretizer = fit(column, bins, binning)
    tokens = encode(discretizer, column)
    decoded = decode(discretizer, tokens)
    assert tokens.min() >= 0
    assert tokens.max() < discretizer.counts[0] <= bins
    np.testing.assert_array_equal(encode(discretizer, decoded), tokens)
    if binning == "quantile":
        for token in np.unique(tokens):
            members = column[tokens == token]
            assert members.min() <= discretizer.values[0, token] <= members.max()


@settings(deadline=None, max_examples=50)
@given(column=columns, bins=st.integers(2, 20), binning=st.sampled_from(BINNINGS))
def test_tokens_keep_the_order_of_numbers(column: np.ndarray, bins: int, binning: str) -> None:
    discretizer = fit(column, bins, binning)
    ordered = np.sort(column)
    assert (np.diff(encode(discretizer, ordered)) >= 0).all()
    used = discretizer.values[0, : discretizer.counts[0]].numpy()
    assert (np.diff(used) > 0).all()


def most_atoms(counts: list[int], bins: int) -> int:
    full = sum(count >= sum(counts) / bins for count in counts)
    return min((bins - 1) // 2, max(full, 2, int(MAX_ATOM_FRACTION * bins)))


def slow_atoms(counts: list[tuple[float, int]], bins: int) -> set[float]:
    """The values that get a bin of their own."""
    rows = sum(count for _, count in counts)
    atoms = {value for value, count in counts if count >= max(2, MIN_ATOM_FRACTION * rows / bins)}
    limit = most_atoms([count for _, count in counts], bins)
    if len(atoms) > limit:
        next_count = sorted((count for _, count in counts), reverse=True)[limit]
        atoms = {value for value, count in counts if count > next_count}
    return atoms


def slow_quantile_bins(column: np.ndarray, bins: int) -> list[list[tuple[float, int]]]:
    """The members of each bin, ascending, each with the number of its rows; value by value."""
    counts = sorted(Counter(column.tolist()).items())
    if len(counts) <= bins:
        return [[one] for one in counts]
    atoms = slow_atoms(counts, bins)
    runs: list[list[tuple[float, int]]] = []
    for value, count in counts:
        if value in atoms or not runs or runs[-1][-1][0] in atoms:
            runs.append([])
        runs[-1].append((value, count))
    rows = [sum(count for _, count in run) for run in runs]
    shares = [1] * len(runs)
    for _ in range(bins - len(runs)):
        need = [
            total / (share + 0.5) if share < len(run) else -1
            for total, share, run in zip(rows, shares, runs, strict=True)
        ]
        shares[need.index(max(need))] += 1
    groups = []
    for run, total, share in zip(runs, rows, shares, strict=True):
        parts: list[list[tuple[float, int]]] = [[] for _ in range(share)]
        before = 0
        for value, count in run:
            # a member belongs to the group that the middle of its rows falls into
            middle = before + count / 2
            parts[max(group for group in range(share) if group * (total / share) <= middle)].append((value, count))
            before += count
        groups += [part for part in parts if part]
    return groups


few_values = st.integers(-30, 30).map(lambda number: number / 4)


@settings(deadline=None, max_examples=150)
@given(
    column=arrays(np.float32, st.integers(1, 400), elements=few_values | numbers) | columns,
    bins=st.sampled_from([2, 3, 4, 5, 7, 10, 20, 50]),
)
def test_quantile_bins_against_a_slow_loop(column: np.ndarray, bins: int) -> None:
    groups = slow_quantile_bins(column, bins)
    discretizer = fit(column, bins, "quantile")
    assert discretizer.counts[0] == len(groups)
    number_of = {value: number for number, group in enumerate(groups) for value, _ in group}
    assert encode(discretizer, column).tolist() == [number_of[value] for value in column.tolist()]
    means = [sum(value * count for value, count in group) / sum(count for _, count in group) for group in groups]
    spread = max(abs(column.max()), abs(column.min()))
    np.testing.assert_allclose(discretizer.values[0, : len(groups)], means, rtol=1e-5, atol=1e-7 * spread)


@settings(deadline=None, max_examples=50)
@given(column=columns, bins=st.integers(2, 20), binning=st.sampled_from(BINNINGS), chunk=st.integers(1, 200))
def test_how_many_rows_are_looked_at_at_a_time_changes_nothing(
    column: np.ndarray, bins: int, binning: str, chunk: int
) -> None:
    whole = fit(column, bins, binning).state_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trajectory.data.discretizer, "CHUNK", chunk)
        parts = fit(column, bins, binning).state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@settings(deadline=None, max_examples=50)
@given(column=columns, bins=st.integers(2, 20), binning=st.sampled_from(BINNINGS), seed=st.integers(0, 100))
def test_the_order_of_rows_changes_nothing(column: np.ndarray, bins: int, binning: str, seed: int) -> None:
    before = column.copy()
    one = fit(column, bins, binning).state_dict()
    np.testing.assert_array_equal(column, before)
    other = fit(np.random.default_rng(seed).permutation(column), bins, binning).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


@settings(deadline=None, max_examples=50)
@given(column=columns, bins=st.integers(2, 20), binning=st.sampled_from(BINNINGS))
def test_repeated_values_are_exact(column: np.ndarray, bins: int, binning: str) -> None:
    counts = Counter(column.tolist())
    repeated = [value for value, count in counts.items() if count >= max(2, MIN_ATOM_FRACTION * len(column) / bins)]
    decoded = round_trip(column, bins, binning)
    if len(repeated) <= most_atoms(list(counts.values()), bins):
        exact = np.isin(column, np.array(repeated, dtype=np.float32))
        np.testing.assert_array_equal(decoded[exact], column[exact])


@settings(deadline=None, max_examples=50)
@given(
    distinct=arrays(
        np.float32, st.integers(1, 12), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    ),
    repeats=st.integers(1, 5),
    binning=st.sampled_from(BINNINGS),
)
def test_no_more_distinct_values_than_bins_are_all_exact(distinct: np.ndarray, repeats: int, binning: str) -> None:
    column = np.tile(distinct, repeats)
    discretizer = fit(column, 12, binning)
    assert discretizer.counts[0] == len(np.unique(distinct))
    np.testing.assert_array_equal(decode(discretizer, encode(discretizer, column)), column)


@pytest.mark.parametrize("binning", BINNINGS)
@pytest.mark.parametrize("values", [[3.5], [0.0, 1.0], [-1e-7, 1e-7]])
@pytest.mark.parametrize("rows", [2, 1_000])
def test_constant_and_two_value_columns(values: list[float], rows: int, binning: str) -> None:
    column = np.resize(np.array(values, dtype=np.float32), rows)
    np.testing.assert_array_equal(round_trip(column, 100, binning), column)


@pytest.mark.parametrize("binning", BINNINGS)
def test_rare_rewards_of_one_are_told_from_zero(binning: str) -> None:
    rewards = np.zeros(100_000, dtype=np.float32)
    rewards[::1_000] = 1.0
    np.testing.assert_array_equal(round_trip(rewards, 100, binning), rewards)


@pytest.mark.parametrize("binning", BINNINGS)
def test_saturated_actions_are_exact_among_continuous_ones(binning: str) -> None:
    actions = np.clip(np.random.default_rng(0).normal(0, 0.8, 50_000), -1, 1).astype(np.float32)
    decoded = round_trip(actions, 100, binning)
    saturated = np.abs(actions) == 1
    assert saturated.mean() > 0.1
    np.testing.assert_array_equal(decoded[saturated], actions[saturated])
    assert (np.abs(decoded[~saturated]) < 1).all()


@pytest.mark.parametrize("binning", BINNINGS)
def test_a_value_that_fills_a_tenth_of_a_bin_is_exact(binning: str) -> None:
    """20 rows of a value where an equal bin holds 200, far from the middle of the bin that it would fall into."""
    rng = np.random.default_rng(0)
    column = np.concatenate([rng.normal(size=19_980), np.full(20, 0.01)]).astype(np.float32)
    np.testing.assert_array_equal(round_trip(column, 100, binning)[-20:], column[-20:])


@pytest.mark.parametrize("binning", BINNINGS)
def test_with_more_repeated_values_than_bins_the_most_frequent_are_exact(binning: str) -> None:
    rng = np.random.default_rng(0)
    frequent = np.repeat(np.array([0.25, 0.5, 0.75], dtype=np.float32), 5_000)
    repeated = np.repeat(rng.random(500).astype(np.float32), 10)
    decoded = round_trip(np.concatenate([frequent, repeated]), 10, binning)
    np.testing.assert_array_equal(decoded[: len(frequent)], frequent)


@pytest.mark.parametrize("binning", BINNINGS)
def test_many_values_that_repeat_a_little_leave_bins_to_the_rest(binning: str) -> None:
    """As those that walks come to over and over from walls: forty of them, the 200th part of the numbers each."""
    rng = np.random.default_rng(0)
    repeated = np.repeat(np.linspace(0, 0.1, 40, dtype=np.float32), 100)
    tokens = encode(fit(np.concatenate([repeated, rng.random(16_000, dtype=np.float32)]), 100, binning), repeated)
    assert len(np.unique(tokens)) <= 35


@pytest.mark.parametrize("rows", [101, 150, 999, 10_000])
def test_all_bins_are_in_use_however_few_the_rows(rows: int) -> None:
    column = np.linspace(-2, 3, rows, dtype=np.float32)
    assert fit(column, 100, "uniform").counts[0] == 100
    quantile = fit(column, 100, "quantile")
    assert quantile.counts[0] == 100
    np.testing.assert_array_equal(np.unique(encode(quantile, column)), np.arange(100))


def test_quantile_bins_hold_equal_shares() -> None:
    rng = np.random.default_rng(0)
    column = rng.standard_exponential(20_000).astype(np.float32)
    tokens = encode(fit(column, 100, "quantile"), column)
    assert np.abs(np.bincount(tokens, minlength=100) - 200).max() <= 2


def test_quantile_bins_share_what_a_repeated_value_leaves() -> None:
    rng = np.random.default_rng(0)
    column = np.concatenate([np.full(5_000, -1.0), rng.uniform(-1, 1, 15_000)]).astype(np.float32)
    rows = np.bincount(encode(fit(column, 100, "quantile"), column), minlength=100)
    assert rows[0] == 5_000
    assert np.abs(rows[1:] - 15_000 / 99).max() <= 2


def test_uniform_bins_have_equal_widths() -> None:
    rng = np.random.default_rng(0)
    column = rng.normal(size=20_000).astype(np.float32)
    discretizer = fit(np.unique(column), 50, "uniform")
    edges = np.linspace(column.min(), column.max(), 51)
    np.testing.assert_allclose(discretizer.boundaries[0], edges[1:-1], atol=1e-5)
    np.testing.assert_allclose(discretizer.values[0], (edges[:-1] + edges[1:]) / 2, atol=1e-5)


@pytest.mark.parametrize("binning", BINNINGS)
@pytest.mark.parametrize("start", [0.0, 1.0, -1.0, 1e6])
def test_neighbouring_float32_values(start: float, binning: str) -> None:
    """Bins as narrow as the numbers themselves: a decoded number still belongs to the bin it came from."""
    column = np.full(30, start, dtype=np.float32)
    for row in range(1, len(column)):
        column[row] = np.nextafter(column[row - 1], np.float32(np.inf))
    assert len(np.unique(column)) == len(column)
    np.testing.assert_array_equal(round_trip(column, 30, binning), column)
    discretizer = fit(column, 20, binning)
    tokens = encode(discretizer, column)
    decoded = decode(discretizer, tokens)
    np.testing.assert_array_equal(encode(discretizer, decoded), tokens)
    assert np.abs(decoded - column).max() <= 2 * np.spacing(np.abs(column)).max()


@pytest.mark.parametrize("binning", BINNINGS)
def test_numbers_outside_the_data_take_the_outermost_bins(binning: str) -> None:
    discretizer = fit(np.linspace(0, 1, 500, dtype=np.float32), 10, binning)
    outside = np.array([-np.inf, -1e30, -0.1, 1.1, 1e30, np.inf], dtype=np.float32)
    assert encode(discretizer, outside).tolist() == [0, 0, 0, 9, 9, 9]
    few = fit(np.array([0.0, 1.0], dtype=np.float32), 10, binning)
    assert encode(few, outside).tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_numbers_that_are_not_finite_are_refused_by_name(bad: float) -> None:
    """1e39 is finite in float64 alone, not in the float32 that is tokenised."""
    columns = [np.arange(3.0) for _ in range(LAYOUT.transition_dim)]
    columns[2][1] = bad
    with pytest.raises(UserError, match=r"action\[0\] must hold finite numbers"):
        Discretizer.fit(columns, 10, "quantile", LAYOUT)


@pytest.mark.parametrize(
    ("bins", "binning", "message"),
    [
        (10, "kmeans", "tokenizer.binning must be quantile or uniform, got 'kmeans'"),
        (1, "quantile", "tokenizer.bins must be a whole number of at least 2, got 1"),
        (2.5, "quantile", "tokenizer.bins must be a whole number of at least 2, got 2.5"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(bins: int, binning: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        fit(np.arange(3.0), bins, binning)
    assert str(error.value) == message


@pytest.fixture
def five_columns() -> tuple[Discretizer, np.ndarray]:
    """A discretiser of a whole transition, its columns of different kinds, and its data (500, 5)."""
    rng = np.random.default_rng(0)
    data = np.stack(
        [rng.normal(size=500), np.full(500, 2.0), rng.uniform(-1, 1, 500), rng.integers(0, 3, 500), rng.random(500)],
        axis=1,
    ).astype(np.float32)
    return Discretizer.fit(list(data.T), 10, "quantile", LAYOUT), data


def test_dimensions_are_independent(five_columns: tuple[Discretizer, np.ndarray]) -> None:
    discretizer, data = five_columns
    assert discretizer.counts.tolist() == [10, 1, 10, 3, 10]
    tokens = discretizer.encode(torch.from_numpy(data))
    for dimension, column in enumerate(data.T):
        alone = fit(column, 10, "quantile")
        np.testing.assert_array_equal(tokens[:, dimension], encode(alone, column))
        part = slice(dimension, dimension + 1)
        torch.testing.assert_close(discretizer.decode(tokens[:, part], part), alone.decode(tokens[:, part]))


def test_leading_shapes_and_slices_of_dimensions(five_columns: tuple[Discretizer, np.ndarray]) -> None:
    discretizer, data = five_columns
    numbers = torch.from_numpy(data)
    tokens = discretizer.encode(numbers)
    shaped = discretizer.encode(numbers.view(20, 25, 5)[..., LAYOUT.action], LAYOUT.action)
    assert torch.equal(shaped, tokens.view(20, 25, 5)[..., LAYOUT.action])
    decoded = discretizer.decode(shaped, LAYOUT.action)
    assert torch.equal(decoded, discretizer.decode(tokens).view(20, 25, 5)[..., LAYOUT.action])
    assert torch.equal(discretizer.encode(numbers[7]), tokens[7])


def test_the_stop_token_is_never_valid_and_decodes_as_the_top_bin(
    five_columns: tuple[Discretizer, np.ndarray],
) -> None:
    discretizer, data = five_columns
    valid = discretizer.valid()
    assert valid.shape == (5, 11)
    assert valid.sum(1).tolist() == [10, 1, 10, 3, 10]
    assert not valid[:, 10].any()
    tokens = discretizer.encode(torch.from_numpy(data))
    assert valid[torch.arange(5), tokens].all()
    top = discretizer.decode(discretizer.counts - 1)
    assert torch.equal(discretizer.decode(torch.full((5,), 10)), top)


def test_expectation_against_a_loop(five_columns: tuple[Discretizer, np.ndarray]) -> None:
    discretizer, _ = five_columns
    probabilities = torch.rand(4, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probabilities /= probabilities.sum(-1, keepdim=True)
    for dimension in range(5):
        means = discretizer.expectation(probabilities, dimension)
        for row in range(4):
            total = sum(float(probabilities[row, token] * discretizer.values[dimension, token]) for token in range(10))
            given_no_stop = total / (1 - float(probabilities[row, 10]))
            assert float(means[row]) == pytest.approx(given_no_stop, rel=1e-12)


def test_a_state_dict_carries_the_whole_tokeniser(five_columns: tuple[Discretizer, np.ndarray]) -> None:
    discretizer, data = five_columns
    empty = Discretizer(5, 10)
    empty.load_state_dict(discretizer.state_dict())
    tokens = empty.encode(torch.from_numpy(data))
    assert torch.equal(tokens, discretizer.encode(torch.from_numpy(data)))
    assert torch.equal(empty.decode(tokens), discretizer.decode(tokens))
