"""A model as ONNX, for deployments without Python: a step of the GPT, the critic's Q, and in JSON what a planner needs.

The search itself is not in a graph. Whoever deploys a model encodes observations with the bins, runs the step token by
token, samples, and selects rows of keys and values for the beams that go on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajectory.critic.critic import Critic
from trajectory.data.discretizer import Discretizer
from trajectory.errors import UserError
from trajectory.imports import optional_import
from trajectory.model.checkpoint import Checkpoint
from trajectory.model.gpt import GPT, TORCH, mask_end
from trajectory.model.operations import attended, split_heads
from trajectory.transition import TransitionLayout

STEP, Q_VALUE, POLICY, DESCRIPTION = "step.onnx", "q_value.onnx", "policy.onnx", "deployment.json"
FORMAT = 1  # of the description
OPSET = 20  # the first with GELU
TOLERANCE = 1e-5  # between ONNX Runtime and torch, of the largest logit or Q and at least of 1
log = logging.getLogger("export")


class Step(nn.Module):
    """`GPT.forward` for tokens that follow others, whose keys and values are given. Names as in `trajectory.model.gpt`.

    With no past it is the pass over a whole window. Rows are sequences; whoever searches selects rows of the keys and
    values. Their oldest tokens may be dropped when they are beyond the attention span.
    """

    def __init__(self, gpt: GPT) -> None:
        super().__init__()
        self.gpt = gpt

    def forward(self, tokens: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the token after each, and the keys and values with the new tokens'.

        Args:
            tokens: (R, T) int64.
            position: () int64, of the first of them in its sequence.
            keys, values: (L, R, n, C) of the n tokens before it, value tokens included.

        Returns:
            (R, T, N + 1) logits, and (L, R, n + T, C) keys and values.
        """
        gpt, past, T = self.gpt, keys.shape[2], tokens.shape[1]
        settings, D = gpt.settings, gpt.layout.transition_dim
        positions = position + torch.arange(T)
        before = position - past + torch.arange(past + T)  # of all tokens that have keys
        mask = attended(positions, before, D, settings.attention_span)  # (T, n + T)
        x, rotations = gpt.embed(tokens, positions), gpt.rotations(positions // D)
        all_keys, all_values = [], []
        for layer, block in enumerate(gpt.blocks):

            def attend(qkv: Tensor, layer: int = layer) -> Tensor:
                q, k, v = split_heads(qkv, settings.n_head, rotations)  # (R, H, T, C / H) each
                k, v = (
                    torch.cat([old[layer], new.transpose(1, 2).flatten(2)], dim=1)  # (R, n + T, C)
                    for old, new in ((keys, k), (values, v))
                )
                all_keys.append(k)
                all_values.append(v)
                k, v = (part.unflatten(2, (settings.n_head, -1)).transpose(1, 2) for part in (k, v))
                y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (R, H, T, C / H)
                return y.transpose(1, 2).flatten(2)  # (R, T, C)

            x = block(x, attend, TORCH)
        # every dimension has its own head: multiply token by token
        logits = gpt.final_norm(x).transpose(0, 1) @ gpt.head[positions % D].transpose(1, 2)  # (T, R, N + 1)
        return mask_end(logits.transpose(0, 1), settings), torch.stack(all_keys), torch.stack(all_values)


class SmallestQ(nn.Module):
    """(R, observation_dim) observations and (R, action_dim) actions -> (R,) the smallest of the critic's Q."""

    def __init__(self, critic: Critic) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        return self.critic.q_values(observations, actions).amin(0)


class Policy(nn.Module):
    """(R, observation_dim) observations -> (R, action_dim) actions of the critic's policy."""

    def __init__(self, critic: Critic) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, observations: Tensor) -> Tensor:
        actions = self.critic.actions(observations)
        assert actions is not None
        return actions


def files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """What is in the folder of a deployment, by the names of files.

    Raises:
        UserError: the extra `onnx` is missing or broken, or what it makes computes something else.
    """
    with optional_import("format=onnx", "onnx"):
        import onnx
        import onnxruntime
        import onnxscript
    gpt, L, C = checkpoint.gpt, checkpoint.gpt.settings.n_layer, checkpoint.gpt.settings.n_embd
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(gpt.settings.bins, (3, gpt.layout.transition_dim + 2), generator=generator)
    past = torch.randn(2, L, 3, 4, C, generator=generator)
    sizes = ({0: "rows", 1: "tokens"}, {}, {1: "rows", 2: "past"}, {1: "rows", 2: "past"})
    names = ("tokens", "position", "keys", "values"), ("logits", "keys_out", "values_out")
    found = {STEP: _graph(Step(gpt), (tokens, torch.tensor(4), *past), sizes, *names)}
    if checkpoint.critic is not None:
        found[Q_VALUE] = _graph(
            SmallestQ(checkpoint.critic),
            tuple(torch.randn(3, width, generator=generator) for width in _widths(gpt.layout)),
            ({0: "rows"}, {0: "rows"}),
            *(("observations", "actions"), ("q_value",)),
        )
        observations = torch.randn(3, gpt.layout.observation_dim, generator=generator)
        if checkpoint.critic.actions(observations) is not None:
            found[POLICY] = _graph(
                Policy(checkpoint.critic), (observations,), ({0: "rows"},), ("observations",), ("actions",)
            )
    difference = _largest_difference(checkpoint, found, generator)
    versions = {module.__name__: module.__version__ for module in (torch, onnx, onnxscript, onnxruntime)}
    if not difference <= TOLERANCE:
        raise UserError(f"format=onnx must compute what torch computes, but is {difference:.1e} off with {versions}")
    log.info("ONNX Runtime's logits differ from torch's by at most %.1e of the largest", difference)
    description = {
        "format": FORMAT,
        "global_step": checkpoint.step,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in found.items()},
        "attention_span": gpt.settings.attention_span,
        "stop_token": gpt.stop_token,
        "bins": _bins(checkpoint.discretizer, gpt.layout),
        "hyper_parameters": checkpoint.hyperparameters,
        "versions": versions,
    }
    return {**found, DESCRIPTION: (json.dumps(description) + "\n").encode()}


def _bins(discretizer: Discretizer, layout: TransitionLayout) -> list[dict[str, Any]]:
    """Of each dimension its name, the boundaries between its bins, and what these decode to."""
    parts = zip(discretizer.counts.tolist(), discretizer.boundaries.tolist(), discretizer.values.tolist(), strict=True)
    return [
        {"name": layout.name(dimension), "boundaries": boundaries[: count - 1], "values": values[:count]}
        for dimension, (count, boundaries, values) in enumerate(parts)
    ]


def _graph(
    module: nn.Module,
    arguments: tuple[Tensor, ...],
    sizes: tuple[dict[int, str], ...],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
) -> bytes:
    """A module as ONNX.

    Args:
        arguments: examples.
        sizes: of each argument, the names of the axes whose size is free.
    """
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            arguments,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=sizes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:  # with paths of this machine
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    return model.SerializeToString()


def _largest_difference(checkpoint: Checkpoint, found: dict[str, bytes], generator: torch.Generator) -> float:
    """Between ONNX Runtime and torch, relative to the largest number and at least to 1."""
    from onnxruntime import InferenceSession

    def run(name: str, **inputs: Tensor) -> list[Tensor]:
        session = InferenceSession(found[name], providers=["CPUExecutionProvider"])
        arrays = session.run(None, {key: value.numpy() for key, value in inputs.items()})
        return [torch.from_numpy(array) for array in arrays]

    gpt = checkpoint.gpt
    T = gpt.settings.block_size(gpt.layout.transition_dim) // 2
    tokens = torch.randint(gpt.settings.bins, (2, 2 * T), generator=generator)
    empty = torch.zeros(gpt.settings.n_layer, 2, 0, gpt.settings.n_embd)
    first, keys, values = run(STEP, tokens=tokens[:, :T], position=torch.tensor(0), keys=empty, values=empty)
    second, *_ = run(STEP, tokens=tokens[:, T:], position=torch.tensor(T), keys=keys, values=values)
    with torch.inference_mode():
        pairs = [(torch.cat([first, second], dim=1), gpt(tokens))]
        if checkpoint.critic is not None:
            numbers = [torch.randn(5, width, generator=generator) for width in _widths(gpt.layout)]
            (q,) = run(Q_VALUE, observations=numbers[0], actions=numbers[1])
            pairs.append((q, SmallestQ(checkpoint.critic)(*numbers)))
            if POLICY in found:
                (actions,) = run(POLICY, observations=numbers[0])
                pairs.append((actions, Policy(checkpoint.critic)(numbers[0])))
        finite = [(one[other.isfinite()], other[other.isfinite()]) for one, other in pairs]
    return max(float((one - other).abs().max() / other.abs().max().clamp(min=1)) for one, other in finite)


def _widths(layout: TransitionLayout) -> tuple[int, int]:
    return layout.observation_dim, layout.action_dim


@contextmanager
def _quiet() -> Generator[None]:
    """Without the exporter's warnings: about torchvision, its own names and its own deprecations."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
