"""The order of the tokens in a transition. All index arithmetic over transitions lives here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

# of each column: (lowest, number) of the values of a choice, or None for a number
Choices = tuple[tuple[int, int] | None, ...]


class TokenKind(StrEnum):
    """The four kinds of token, in their order in a transition."""

    OBSERVATION = "observation"
    ACTION = "action"
    REWARD = "reward"
    VALUE = "value"


@dataclass(frozen=True)
class TransitionLayout:
    """One transition is D = `observation_dim` + `action_dim` + 2 tokens (paper, section 3.1).

        observation[0] ... observation[O - 1]  action[0] ... action[A - 1]  reward  value

    The value token is the return-to-go (paper, section 3.2). A sequence of W transitions is flattened to W * D tokens,
    and the token at position p has dimension p % D.

    Args:
        choices: of the observation's and the action's dimensions; empty if all are numbers.
    """

    observation_dim: int
    action_dim: int
    choices: Choices = ()

    def __post_init__(self) -> None:
        plain = tuple(None if choice is None else (int(choice[0]), int(choice[1])) for choice in self.choices)
        object.__setattr__(self, "choices", plain if any(plain) else ())  # files have lists

    @property
    def transition_dim(self) -> int:
        """D, the tokens in one transition."""
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

    @property
    def observation_choices(self) -> Choices:
        """Of each dimension of the observation."""
        return (self.choices or (None,) * self.observation_dim)[: self.observation_dim]

    @property
    def action_choices(self) -> Choices:
        """Of each dimension of the action."""
        return self.choices[self.observation_dim :] or (None,) * self.action_dim

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

    def describe(self, dimension: int) -> str:
        """What a dimension of observation or action holds, for messages: `a number`, `4 choices from 0 on`."""
        choice = self.choices[dimension] if self.choices else None
        return "a number" if choice is None else f"{choice[1]} choices from {choice[0]} on"
