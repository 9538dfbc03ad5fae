"""The layout of tokens in a transition, with all index arithmetic over transitions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class TokenKind(StrEnum):
    """The four kinds of token in a transition, in their order."""

    OBSERVATION = "observation"
    ACTION = "action"
    REWARD = "reward"
    VALUE = "value"


@dataclass(frozen=True)
class TransitionLayout:
    """A transition is `observation_dim` + `action_dim` tokens, then the reward, then the value (return-to-go).

    Paper: section 3.1; section 3.2 adds the return-to-go token.
    """

    observation_dim: int
    action_dim: int

    @property
    def transition_dim(self) -> int:
        """Tokens in one transition."""
        return self.observation_dim + self.action_dim + 2

    @property
    def reward_index(self) -> int:
        """Dimension of the reward token."""
        return self.transition_dim - 2

    @property
    def value_index(self) -> int:
        """Dimension of the value token, the last of its transition."""
        return self.transition_dim - 1

    @property
    def observation(self) -> slice:
        """Dimensions of the observation tokens."""
        return slice(0, self.observation_dim)

    @property
    def action(self) -> slice:
        """Dimensions of the action tokens."""
        return slice(self.observation_dim, self.observation_dim + self.action_dim)

    def kind(self, dimension: int) -> TokenKind:
        """The kind of token at a dimension of the transition."""
        if dimension < self.observation_dim:
            return TokenKind.OBSERVATION
        if dimension < self.reward_index:
            return TokenKind.ACTION
        return TokenKind.REWARD if dimension == self.reward_index else TokenKind.VALUE

    def kinds(self) -> list[TokenKind]:
        """The kind of every dimension, in order."""
        return [self.kind(dimension) for dimension in range(self.transition_dim)]

    def dimension(self, position: int) -> int:
        """The dimension of the token at a position of the flattened sequence."""
        return position % self.transition_dim

    def name(self, dimension: int) -> str:
        """A name for messages: `observation[3]`, `action[0]`, `reward`, `value`."""
        kind = self.kind(dimension)
        if kind is TokenKind.OBSERVATION:
            return f"observation[{dimension}]"
        if kind is TokenKind.ACTION:
            return f"action[{dimension - self.observation_dim}]"
        return str(kind)
