"""The settings of the architecture and the optimiser."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trajectory.errors import require

INIT_STD = 0.02  # standard deviation of initial weights


@dataclass(frozen=True)
class GPTSettings:
    """The architecture; the defaults are the published ones, except for `positions`.

    Args:
        window: transitions in a training window, and the longest sequence with absolute positions.
        positions: `rotary`, or `absolute` as published.
        attention_window: transitions that a token attends to with rotary positions, its own included; None is `window`.
        bins: N, tokens per dimension; the stop token, which fills the transitions after a termination, is one more.
        goal: observation dimensions of the goal in front of every window; None for a model without goals.
        predicts_end: False for a model without a stop token, such as an imported one: it never predicts an end.
        value_residual: True keeps the published leak of value tokens (see `trajectory.model.gpt`).
        init_smoothness: width, in bins, of the kernel that smooths the initial embeddings of neighbouring bins; 0 is
            as published. Bins are ordered, and a model that begins with that order learns faster.
        init_scale: standard deviation of the initial token embeddings; with a larger one they stay smooth for longer.
        activation_checkpointing: store only the inputs of blocks, and compute their activations again in the backward
            pass.

    Raises:
        UserError: a value out of its range.
    """

    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    window: int = 10
    positions: str = "rotary"
    attention_window: int | None = None
    bins: int = 100
    goal: list[int] | None = None
    embedding_dropout: float = 0.1
    residual_dropout: float = 0.1
    attention_dropout: float = 0.1
    value_residual: bool = False
    init_smoothness: float = 0.0
    init_scale: float = INIT_STD
    activation_checkpointing: bool = False
    predicts_end: bool = True

    def __post_init__(self) -> None:
        for key in ("n_layer", "n_head", "n_embd", "window", "bins"):
            value = getattr(self, key)
            require(isinstance(value, int) and value >= 1, f"model.{key}", "a whole number of at least 1", value)
        require(self.n_embd % self.n_head == 0, "model.n_embd", f"a multiple of n_head={self.n_head}", self.n_embd)
        is_valid = self.positions in ("absolute", "rotary")
        require(is_valid, "model.positions", "absolute or rotary", self.positions)
        span = self.attention_window
        if span is not None:
            rule = f"a whole number from 1 to window={self.window}, with positions=rotary and without goals"
            is_valid = isinstance(span, int) and 1 <= span <= self.window and self.rotary and self.goal is None
            require(is_valid, "model.attention_window", rule, span)
        is_valid = not self.rotary or self.head_dim % 2 == 0
        require(
            is_valid, "model.n_embd", f"an even multiple of n_head={self.n_head} with rotary positions", self.n_embd
        )
        smoothness = self.init_smoothness
        require(0 <= smoothness <= self.bins, "model.init_smoothness", f"from 0 to {self.bins}, the bins", smoothness)
        require(0 < self.init_scale < math.inf, "model.init_scale", "above 0 and finite", self.init_scale)
        for key in ("embedding_dropout", "residual_dropout", "attention_dropout"):
            value = getattr(self, key)
            require(isinstance(value, int | float) and 0 <= value < 1, f"model.{key}", "at least 0 and below 1", value)

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.n_embd // self.n_head

    @property
    def rotary(self) -> bool:
        """Whether positions are rotary."""
        return self.positions == "rotary"

    @property
    def num_prefix_transitions(self) -> int:
        """Transitions in front of a window: 1, the goal, for a model with goals."""
        return 0 if self.goal is None else 1

    def block_size(self, transition_dim: int) -> int:
        """Input tokens of a window; its last value token has nothing to predict, so it is never an input."""
        return (self.num_prefix_transitions + self.window) * transition_dim - 1

    def num_positions(self, transition_dim: int) -> int:
        """Position embeddings. Rotary ones identify just the dimension, and the goal's tokens."""
        if self.rotary:
            return (self.num_prefix_transitions + 1) * transition_dim
        return self.block_size(transition_dim)

    @property
    def attention_span(self) -> int:
        """Transitions that a token attends to, its own and the goal included."""
        return self.num_prefix_transitions + (self.attention_window or self.window)

    @property
    def reencodes_full_window(self) -> bool:
        """Whether a full window must be cropped and encoded again before it can continue."""
        return not self.rotary or self.goal is not None


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW with linear warm-up and cosine decay; the defaults are the published ones.

    Args:
        warmup_fraction, decay_fraction: of all steps. The learning rate rises until the end of the warm-up, falls to
            `final_ratio` of its maximum at `decay_fraction`, and stays there.
        action_weight, reward_weight, value_weight: of those tokens in the loss; observations have 1.
        muon_learning_rate: of the matrices of the blocks, by Muon; None trains them by AdamW like all others.
        ema_decay: of the exponential moving average (EMA) of the weights, with which to plan; None plans with the
            trained weights, as published.
    """

    learning_rate: float = 6e-4
    muon_learning_rate: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    warmup_fraction: float = 0.02
    decay_fraction: float = 0.4
    final_ratio: float = 0.1
    action_weight: float = 5.0
    reward_weight: float = 1.0
    value_weight: float = 1.0
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "model.optimizer.learning_rate", "above 0", self.learning_rate)
        rate = self.muon_learning_rate
        rule = "above 0 and finite, or null"
        require(rate is None or 0 < rate < math.inf, "model.optimizer.muon_learning_rate", rule, rate)
        rule = "two numbers, each at least 0 and below 1"
        betas = self.betas
        require(len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "model.optimizer.betas", rule, betas)
        require(self.weight_decay >= 0, "model.optimizer.weight_decay", "at least 0", self.weight_decay)
        require(
            0 <= self.warmup_fraction <= self.decay_fraction <= 1,
            "model.optimizer.warmup_fraction and decay_fraction",
            "in this order between 0 and 1",
            (self.warmup_fraction, self.decay_fraction),
        )
        require(0 < self.final_ratio <= 1, "model.optimizer.final_ratio", "above 0 and at most 1", self.final_ratio)
        for key in ("action_weight", "reward_weight", "value_weight"):
            weight = getattr(self, key)
            require(0 <= weight < math.inf, f"model.optimizer.{key}", "at least 0 and finite", weight)
        decay = self.ema_decay
        rule = "null, or at least 0 and below 1"
        require(decay is None or 0 <= decay < 1, "model.optimizer.ema_decay", rule, decay)
