"""Attention: recorded weights are the model's own, patterns get their names, the command leaves its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.command_line import Refusal, compose_config, run_main
from helpers.example_data import flat_columns, made_up_episodes, save, write_d4rl
from helpers.made_checkpoint import write_made_checkpoint
from helpers.offline_run import names
from trajectory.analysis.attention import (
    Patterns,
    attention_mass,
    attention_weights,
    describe_head,
    past_actions,
    past_attention,
)
from trajectory.analysis.settings import AttentionSettings
from trajectory.environments.settings import EnvironmentSettings
from trajectory.model.gpt import GPT
from trajectory.model.operations import attention_mask, split_heads
from trajectory.transition import TokenKind, TransitionLayout

LAYOUT, WINDOW, EXCESS = TransitionLayout(5, 2), 8, 0.25
D = LAYOUT.transition_dim
T = WINDOW * D - 1


@pytest.fixture(scope="module")
def patterns() -> Patterns:
    return Patterns(LAYOUT, T, WINDOW)


@pytest.mark.parametrize(
    "settings", [{}, {"positions": "rotary"}, {"positions": "rotary", "attention_window": 2}, {"value_residual": True}]
)
def test_weights_times_values_are_what_the_model_computes(make_gpt: Callable[..., GPT], settings: dict) -> None:
    """Block by block, each layer's attention replaced by the recorded weights times its values, in float64."""
    gpt = make_gpt(**settings)
    tokens = torch.randint(gpt.stop_token + 1, (3, gpt.block_size), generator=torch.Generator().manual_seed(0))
    weights = attention_weights(gpt, tokens)
    heads = gpt.settings.n_head
    assert weights.shape == (3, gpt.settings.n_layer, heads, gpt.block_size, gpt.block_size)
    seen = attention_mask(gpt.block_size, gpt.layout.transition_dim, gpt.settings.attention_span, tokens.device)
    assert (weights[..., ~seen] == 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), rtol=0, atol=1e-12)
    assert weights[..., seen].min() > 0

    # a model of the same weights, where a hook puts in what the recorded weights gather
    def hook(layer: int) -> Callable[..., Tensor]:
        def replaced(module: Any, arguments: tuple[Tensor, Any], output: Tensor) -> Tensor:
            values = split_heads(module.qkv(arguments[0]), heads, None)[2]
            return module.projection((weights[:, layer] @ values).transpose(1, 2).flatten(2))

        return replaced

    with torch.inference_mode():
        expected = gpt(tokens)
        for layer, block in enumerate(gpt.blocks):
            block.attention.register_forward_hook(hook(layer))
        actual = gpt(tokens)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


def test_the_defaults_of_conf_are_those_of_the_dataclass() -> None:
    assert compose_config("analyze", "analysis=attention").analysis == {
        "kind": "attention",
        **asdict(AttentionSettings()),
    }


def spread(pattern: Tensor, patterns: Patterns) -> Tensor:
    """Weights that lie on a pattern alone, evenly; queries that see none of it look at everything alike."""
    chosen = torch.where(pattern.any(-1, keepdim=True), pattern, patterns.visible)
    return chosen / chosen.sum(-1, keepdim=True)


def test_hand_built_patterns_get_their_names(patterns: Patterns) -> None:
    markov, predicted, own = (spread(pattern, patterns) for pattern in patterns.named.values())
    for weights, name in (
        (markov, "Markov"),
        (predicted, "striated"),
        (own, "striated"),
        (patterns.uniform, "neither"),
        ((markov + predicted) / 2, "mixed"),
        ((9 * patterns.uniform + markov) / 10, "neither"),
    ):
        assert describe_head(weights, patterns, EXCESS)["name"] == name
    head = describe_head(markov, patterns, EXCESS)
    assert head["previous_transition"]["attention_mass"] == pytest.approx(1)
    assert describe_head(predicted, patterns, EXCESS)["predicted_dimension"]["attention_mass"] == pytest.approx(1)
    uniform = describe_head(patterns.uniform, patterns, EXCESS)
    assert uniform["own_dimension"]["attention_mass"] == uniform["own_dimension"]["uniform"] > 0


@pytest.mark.parametrize("reach", [WINDOW, 3])
def test_patterns_are_those_of_a_slow_reading(reach: int) -> None:
    patterns = Patterns(LAYOUT, T, reach)
    action = patterns.past(TokenKind.ACTION, [TokenKind.ACTION])
    for query in range(T):
        (own, at), (target, predicted) = divmod(query, D), divmod(query + 1, D)
        for key in range(T):
            transition, dimension = divmod(key, D)
            seen = key <= query and own - transition < reach and dimension != LAYOUT.value_index
            earlier = seen and transition < target
            assert patterns.visible[query, key] == seen
            assert patterns.named["previous_transition"][query, key] == (seen and transition == target - 1)
            assert patterns.named["predicted_dimension"][query, key] == (earlier and dimension == predicted)
            assert patterns.named["own_dimension"][query, key] == (earlier and dimension == at)
            kinds = LAYOUT.kind(predicted), LAYOUT.kind(dimension)
            assert action[query, key] == (earlier and kinds == (TokenKind.ACTION, TokenKind.ACTION))


def test_a_share_is_the_mean_over_queries_that_see_any_of_it(patterns: Patterns) -> None:
    weights = torch.rand(2, T, T, generator=torch.Generator().manual_seed(0)).double() * patterns.visible
    pattern = patterns.named["predicted_dimension"]
    slow = [
        sum(weights[1, query, key].item() for key in range(T) if pattern[query, key])
        for query in range(T)
        if pattern[query].any()
    ]
    assert attention_mass(weights, pattern)[1].item() == pytest.approx(sum(slow) / len(slow), rel=1e-12)


def test_the_verdict_on_past_actions_follows_the_weights(patterns: Patterns) -> None:
    on_actions = spread(patterns.past(TokenKind.ACTION, [TokenKind.ACTION]), patterns)
    on_observations = spread(patterns.past(TokenKind.OBSERVATION, [TokenKind.ACTION]), patterns)
    noise = torch.rand(16, 1, 1, generator=torch.Generator().manual_seed(0)).double() / 10

    apart, together = np.arange(16), np.arange(16) // 4

    def verdict(weights: Tensor, groups: np.ndarray = apart) -> dict[str, Any]:
        found = past_attention((1 - noise) * weights + noise * patterns.uniform, patterns)
        shares = {name: each.numpy() for name, each in found.items()}
        uniform = {name: float(each) for name, each in past_attention(patterns.uniform, patterns).items()}
        return past_actions(shares, uniform, groups, seed=0, resamples=200)

    found = verdict(on_actions)
    assert found["verdict"] == "yes"
    assert found["actions_on_past_actions"]["attention_mass"] == pytest.approx(float(1 - noise.mean()), abs=0.05)
    for comparison in found["more_than"].values():
        low, high = comparison["interval"]
        assert 0 < low < comparison["difference"] < high
    assert verdict(on_observations)["verdict"] == "no"
    # windows of one episode are alike, and tell no more than one of them does
    noise = noise[:4].repeat_interleave(4, dim=0)
    (low, high), (lower, higher) = (
        verdict(on_actions, groups)["more_than"]["uniform attention"]["interval"] for groups in (apart, together)
    )
    assert higher - lower > 1.3 * (high - low)
    # actions look at past actions more than uniform attention would, but all others do far more
    of_actions = patterns.past(TokenKind.ACTION, [TokenKind.ACTION])
    of_others = patterns.past(TokenKind.ACTION, set(TokenKind) - {TokenKind.ACTION})
    half = (on_actions + patterns.uniform) / 2
    partly = verdict(torch.where(of_actions.any(-1, keepdim=True), half, spread(of_others, patterns)))
    assert partly["verdict"] == "in part"
    assert partly["more_than"]["uniform attention"]["holds"] == "yes"
    assert partly["more_than"]["other predictions do"]["holds"] == "no"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model that was not trained."""
    path = tmp_path_factory.mktemp("attention") / "run" / "last.ckpt"
    return write_made_checkpoint(path, "env=walker2d", "model.n_head=4", layout=TransitionLayout(17, 6))


def test_the_command_leaves_numbers_and_a_picture(checkpoint: Path) -> None:
    place = checkpoint.parents[1]
    options = ("dataset.steps=1000", "analysis.windows=6", "analysis.batch_size=4")
    command = ("analysis=attention", f"checkpoint={checkpoint}", "runtime.threads=1", *options)
    process = run_main("analyze", *command, folder=place)
    assert process.returncode == 0, process.stderr
    (folder,) = (place / "outputs" / "analyze" / "attention").iterdir()
    results = json.loads((folder / "results.json").read_text())
    assert results["held_out"] is True
    assert results["windows"] == 6
    assert [(head["layer"], head["head"]) for head in results["heads"]] == [(1, head) for head in (1, 2, 3, 4)]
    assert {head["name"] for head in results["heads"]} <= {"Markov", "striated", "mixed", "neither"}
    # not trained, it looks at all tokens about alike
    previous = results["heads"][0]["previous_transition"]
    assert previous["attention_mass"] == pytest.approx(previous["uniform"], rel=0.2)
    assert results["past_actions"]["verdict"] in ("yes", "in part", "no")
    assert f"do actions look at past actions? {results['past_actions']['verdict']}" in process.stdout
    assert "attention/attention" in names(folder)
    height, width = matplotlib.image.imread(folder / "attention.png").shape[:2]
    assert width > 1_500
    assert height > 400


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("analysis.windows=0", "analysis.windows must be at least 2, which an interval needs, got 0"),
        ("analysis.excess=1", "analysis.excess must be between 0 and 1, got 1.0"),
        ("checkpoint=nowhere.ckpt", "checkpoint must be the path of a checkpoint file, got 'nowhere.ckpt'"),
    ],
)
def test_bad_input_is_one_line(checkpoint: Path, refusal: Refusal, override: str, message: str) -> None:
    overrides = ("analysis=attention", f"checkpoint={checkpoint}", "dataset.steps=10", override)
    assert message in refusal("analyze", *overrides)


def test_data_of_another_environment_are_one_line(checkpoint: Path, refusal: Refusal, store: Path) -> None:
    cheetah = EnvironmentSettings("halfcheetah", "HalfCheetah-v5")
    save("me/pendulum/any-v0", made_up_episodes(2))
    save("me/halfcheetah/any-v0", made_up_episodes(2, cheetah), cheetah)
    file = write_d4rl(store / "halfcheetah_medium-v2.hdf5", flat_columns(made_up_episodes(2, cheetah)))
    command = ("analysis=attention", f"checkpoint={checkpoint}", "dataset=minari")
    line = refusal("analyze", *command, "dataset.id=me/pendulum/any-v0")
    assert line == (
        "error: dataset must be of Walker2d-v5, as the checkpoint's, got 'me/pendulum/any-v0 of Pendulum-v1'"
    )
    # of the same dimensions
    line = refusal("analyze", *command, "dataset.id=me/halfcheetah/any-v0")
    assert line == (
        "error: dataset must be of Walker2d-v5, as the checkpoint's, got 'me/halfcheetah/any-v0 of HalfCheetah-v5'"
    )
    line = refusal("analyze", *command[:2], "dataset=d4rl", f"dataset.path={file}")
    assert line == (
        "error: dataset must be of Walker2d-v5, as the checkpoint's, got 'halfcheetah_medium-v2 of halfcheetah'"
    )


def test_data_without_whole_windows_are_one_line(checkpoint: Path, refusal: Refusal, store: Path) -> None:
    walker = EnvironmentSettings("walker2d", "Walker2d-v5")
    save("me/walker2d/short-v0", made_up_episodes(4, walker), walker)
    line = refusal(
        "analyze", "analysis=attention", f"checkpoint={checkpoint}", "dataset=minari", "dataset.id=me/walker2d/short-v0"
    )
    assert line == "error: dataset must be of at least 2 episodes of 10 transitions or more, got 0"
