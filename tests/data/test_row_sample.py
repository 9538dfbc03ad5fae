"""A random sample of rows that come in parts, and what columns are known to hold besides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trajectory.data.row_sample import KnownValues, RowSample, rank_error


def sample_of(columns: list[np.ndarray], most: int, cuts: list[int]) -> RowSample:
    """Of columns that come in parts."""
    sample = RowSample(most)
    for start, stop in zip([0, *cuts], [*cuts, len(columns[0])], strict=True):
        part = [column[start:stop] for column in columns]
        sample.add(part, np.arange(stop - start))
    return sample


def test_few_rows_are_all_in_it() -> None:
    columns = [np.arange(100, dtype=np.float32), -np.arange(100, dtype=np.float32)]
    for one, whole in zip(sample_of(columns, 100, [30, 31]).columns(), columns, strict=True):
        np.testing.assert_array_equal(one, whole)


@settings(deadline=None, max_examples=30)
@given(most=st.integers(1, 300), cuts=st.lists(st.integers(0, 1000), max_size=5).map(sorted))
def test_it_does_not_depend_on_the_parts(most: int, cuts: list[int]) -> None:
    """Whole rows, in their order, at most so many."""
    numbers = np.arange(1000, dtype=np.float32)
    whole, parts = (sample_of([numbers, 2 * numbers], most, where) for where in ([], cuts))
    (one, doubled), (other, _) = whole.columns(), parts.columns()
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(doubled, 2 * one)
    assert len(one) == whole.kept <= most
    assert (np.diff(one) > 0).all()


def test_half_of_what_may_be_kept_is_kept_at_least() -> None:
    """But for chance: ten standard deviations below."""
    for most in (1_000, 1_500, 1_999):
        kept = sample_of([np.zeros(50_000, np.float32)], most, []).kept
        assert most / 2 - 10 * np.sqrt(most / 2) < kept <= most


def test_rows_that_may_not_be_drawn_are_not() -> None:
    sample = RowSample(50)
    for start in (0, 500):
        sample.add([np.arange(start, start + 500, dtype=np.float32)], np.arange(0, 500, 2))
    (numbers,) = sample.columns()
    assert len(numbers) > 0
    assert (numbers % 2 == 0).all()


@pytest.mark.parametrize("rows", [30_000, 200_000])
def test_ranks_are_off_by_less_than_the_bound(rows: int) -> None:
    """Of continuous numbers, of repeated ones, and of numbers that are ordered by row; far less as a rule."""
    rng = np.random.default_rng(0)
    columns = [rng.normal(size=rows), np.clip(rng.normal(size=rows), -1, 1), np.arange(rows) / rows]
    columns = [column.astype(np.float32) for column in columns]
    sample = sample_of(columns, 10_000, [rows // 3])
    for one, whole in zip(sample.columns(), columns, strict=True):
        at = np.unique(whole)
        shares = [np.searchsorted(np.sort(numbers), at, side="right") / len(numbers) for numbers in (one, whole)]
        assert 0 < np.abs(shares[0] - shares[1]).max() < rank_error(sample.kept, probability=1e-3)


def test_the_bound_in_numbers() -> None:
    """As the documentation says: ten million rows, of which five million are drawn at least."""
    assert rank_error(5_000_000) == pytest.approx(0.00146, abs=1e-5)
    assert rank_error(200, probability=2 * np.exp(-4)) == pytest.approx(0.1)


@settings(deadline=None, max_examples=50)
@given(
    parts=st.lists(st.lists(st.integers(-9, 9), max_size=8), min_size=1, max_size=6),
    most=st.integers(1, 12),
)
def test_few_values_are_known_and_of_many_the_ends(parts: list[list[int]], most: int) -> None:
    known = KnownValues(most)
    for part in parts:
        known.add(np.array(part, dtype=np.float32))
    distinct = sorted({number for part in parts for number in part})
    expected = distinct if len(distinct) <= most else [distinct[0], distinct[-1]]
    assert known.values.tolist() == expected
    assert known.values.dtype == np.float32


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("before", [1, 5])
def test_what_is_not_finite_stays_known(number: float, before: int) -> None:
    known = KnownValues(3)
    for part in ([*range(before)], [number], [0.0]):
        known.add(np.array(part, dtype=np.float32))
    assert not np.isfinite(known.values).all()
