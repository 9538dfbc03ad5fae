"""Drawing tokens by inversion, against a slow loop over a sorted list."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.slow_sampling import slow_distribution, slow_sample
from trajectory.planning.sampling import filter_logits, sample
from trajectory.planning.settings import SamplingSettings

PROBABILITIES = [0.08, 0.4, 0.02, 0.3, 0.15, 0.05]  # tokens by probability: 1, 3, 4, 0, 5, 2
NEAREST_TO_ONE = {torch.float32: 1 - 2**-24, torch.float64: 1 - 2**-53}

SETTINGS = st.builds(
    SamplingSettings,
    top_k=st.none() | st.integers(1, 12),
    top_p=st.none() | st.floats(0.05, 0.95),
    temperature=st.floats(0.2, 5.0),
)


def normal_logits(seed: int, rows: int, tokens: int) -> Tensor:
    return 2 * torch.randn(rows, tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def log(probabilities: Sequence[float]) -> Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def kept(settings: SamplingSettings, probabilities: Sequence[float] = PROBABILITIES) -> set[int]:
    return set(filter_logits(log(probabilities), settings)[0].isfinite().nonzero().flatten().tolist())


@hypothesis_settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), tokens=st.integers(2, 12), settings=SETTINGS)
def test_sample_equals_the_slow_loop(seed: int, tokens: int, settings: SamplingSettings) -> None:
    logits = normal_logits(seed, 20, tokens)
    uniforms = torch.rand(20, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    rows = zip(logits.tolist(), uniforms.tolist(), strict=True)
    assert sample(logits, uniforms, settings).tolist() == [slow_sample(row, u, settings) for row, u in rows]


@hypothesis_settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), tokens=st.integers(2, 12), settings=SETTINGS)
def test_filtered_distribution_equals_the_slow_loop(seed: int, tokens: int, settings: SamplingSettings) -> None:
    logits = normal_logits(seed, 3, tokens)
    for row, probabilities in zip(logits.tolist(), filter_logits(logits, settings).softmax(-1), strict=True):
        expected = slow_distribution(row, settings)
        assert set(probabilities.nonzero().flatten().tolist()) == set(expected)
        assert probabilities[list(expected)].tolist() == pytest.approx(list(expected.values()), rel=1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        SamplingSettings(),
        SamplingSettings(top_k=3),
        SamplingSettings(top_p=0.8),
        SamplingSettings(top_k=4, top_p=0.8, temperature=2.0),
    ],
)
def test_frequencies_converge_to_the_filtered_distribution(settings: SamplingSettings) -> None:
    draws = 100_000
    uniforms = torch.rand(draws, generator=torch.Generator().manual_seed(0))
    tokens = sample(log(PROBABILITIES).expand(draws, -1), uniforms, settings)
    frequencies = torch.bincount(tokens, minlength=len(PROBABILITIES)) / draws
    expected = slow_distribution(log(PROBABILITIES)[0].tolist(), settings)
    for token, frequency in enumerate(frequencies.tolist()):
        p = expected.get(token, 0.0)
        assert abs(frequency - p) <= 5 * math.sqrt(p * (1 - p) / draws)


@pytest.mark.parametrize(
    ("top_k", "tokens"), [(1, {1}), (2, {1, 3}), (4, {0, 1, 3, 4}), (6, set(range(6))), (100, set(range(6)))]
)
def test_top_k_keeps_the_k_most_likely(top_k: int, tokens: set[int]) -> None:
    assert kept(SamplingSettings(top_k=top_k)) == tokens


@pytest.mark.parametrize(
    ("top_p", "tokens"),
    [
        (1e-9, {1}),
        (0.39, {1}),
        (0.41, {1, 3}),
        (0.69, {1, 3}),
        (0.71, {1, 3, 4}),
        (0.97, {0, 1, 3, 4, 5}),
        (0.99, set(range(6))),
        (1.0, set(range(6))),
    ],
)
def test_top_p_keeps_the_fewest_tokens_that_hold_it(top_p: float, tokens: set[int]) -> None:
    assert kept(SamplingSettings(top_p=top_p)) == tokens


def test_top_p_is_measured_within_top_k() -> None:
    """Of tokens 1 and 3 the first holds 4/7 of the probability, of all tokens only 0.4."""
    assert kept(SamplingSettings(top_k=2, top_p=0.5)) == {1}
    assert kept(SamplingSettings(top_p=0.5)) == {1, 3}


def test_top_p_is_measured_after_the_temperature() -> None:
    assert kept(SamplingSettings(top_p=0.39)) == {1}
    assert kept(SamplingSettings(top_p=0.39, temperature=10.0)) == {1, 3, 4}


def test_impossible_tokens_are_not_kept_to_fill_top_k() -> None:
    assert kept(SamplingSettings(top_k=3), [0.0, 0.7, 0.0, 0.3]) == {1, 3}


def test_temperature_divides_the_logits() -> None:
    sharpened = filter_logits(log(PROBABILITIES), SamplingSettings(temperature=0.5)).softmax(-1)[0]
    squares = torch.tensor(PROBABILITIES, dtype=torch.float64) ** 2
    torch.testing.assert_close(sharpened, squares / squares.sum())


@hypothesis_settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.1, 10.0), top_p=st.none() | st.floats(0.1, 1.0))
def test_top_k_of_one_takes_the_most_likely_token(seed: int, temperature: float, top_p: float | None) -> None:
    logits = normal_logits(seed, 20, 7)
    settings = SamplingSettings(top_k=1, top_p=top_p, temperature=temperature)
    uniforms = torch.rand(20, generator=torch.Generator().manual_seed(seed))
    assert settings.greedy
    assert torch.equal(sample(logits, uniforms, settings), logits.argmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@hypothesis_settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10_000),
    tokens=st.integers(2, 101),
    share=st.floats(0.0, 0.95),
    scale=st.sampled_from([1.0, 30.0, 1000.0]),
    settings=SETTINGS,
)
def test_a_token_of_zero_probability_is_never_drawn(
    dtype: torch.dtype, seed: int, tokens: int, share: float, scale: float, settings: SamplingSettings
) -> None:
    """Also for the draws next to 0 and 1, or rounded to it, with impossible tokens at both ends and in between."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(200, tokens, generator=generator, dtype=dtype)
    impossible = torch.rand(200, tokens, generator=generator) < share
    impossible[:100, [0, -1]] = True
    impossible[torch.arange(200), torch.randint(tokens, (200,), generator=generator)] = False
    logits = logits.masked_fill(impossible, -torch.inf)
    probabilities = filter_logits(logits, settings).softmax(-1)
    for uniform in (0.0, torch.finfo(dtype).tiny, 1e-8, 0.5, 1 - 1e-7, NEAREST_TO_ONE[dtype], 1.0):
        drawn = sample(logits, torch.full((200,), uniform, dtype=dtype), settings)
        assert (probabilities.gather(1, drawn[:, None]) > 0).all(), uniform


def test_the_first_and_last_possible_tokens_are_drawn_next_to_0_and_1() -> None:
    logits = log([0.0, 0.5, 0.25, 0.25, 0.0]).expand(2, -1)
    uniforms = torch.tensor([0.0, NEAREST_TO_ONE[torch.float64]], dtype=torch.float64)
    assert sample(logits, uniforms, SamplingSettings()).tolist() == [1, 3]
