"""The C functions over odd shapes, for a compiler that watches memory and arithmetic: prints how many it went through.

As a script, with CC naming that compiler and the sanitiser's library loaded before Python's.
"""

from __future__ import annotations

import itertools

import torch

from trajectory.critic.iql import ImplicitQLearning, IQLCritic
from trajectory.critic.rebrac import ReBRACCritic, ReBRACLearning
from trajectory.critic.settings import IQLCriticSettings, ReBRACCriticSettings
from trajectory.data.transitions import Transitions
from trajectory.hardware import torch_threads
from trajectory.model.gpt import GPT
from trajectory.model.loss import token_losses
from trajectory.model.native_decoder import NativeGPT
from trajectory.model.settings import GPTSettings
from trajectory.transition import TransitionLayout

LAYOUTS = (TransitionLayout(1, 1), TransitionLayout(11, 3))
SIZES = ((16, 1), (48, 3), (64, 4), (192, 4))  # widths and heads; not all widths are multiples of a vector's

PRECISIONS = (torch.float32, torch.bfloat16)


def model(layout: TransitionLayout, n_embd: int, n_head: int, window: int, positions: str, bins: int) -> GPT:
    torch.manual_seed(0)
    settings = GPTSettings(
        n_layer=1, n_embd=n_embd, n_head=n_head, window=window, positions=positions, bins=bins, attention_dropout=0.2
    )
    return GPT(settings, layout)


@torch.inference_mode()
def decode(gpt: GPT, rows: int, transitions: int, dtype: torch.dtype) -> bool:
    """A transition at once, then token by token. False for a width that this processor leaves to torch."""
    D = gpt.layout.transition_dim
    try:
        decoder = NativeGPT(gpt.eval(), dtype)
    except OSError as error:
        if "this architecture is computed by torch" in str(error):
            return False
        raise
    cache = decoder.new_cache((transitions + 1) * D * max(rows, 1))
    cache.clear(rows)
    bins = gpt.settings.bins
    cache.open_segment(D, 0)
    decoder.decode_step(torch.randint(bins, (rows, D)), 0, cache)
    for transition in range(1, transitions):
        cache.open_segment(D, transition)
        for position in range(transition * D, (transition + 1) * D):
            decoder.decode_step(torch.randint(bins, (rows, 1)), position, cache)
    return True


def train(gpt: GPT, batch: int, transitions: int, dtype: torch.dtype) -> None:
    tokens = torch.randint(gpt.settings.bins, (batch, transitions, gpt.layout.transition_dim))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        losses, _ = token_losses(gpt.train(), tokens, torch.ones(batch, transitions, dtype=torch.bool))
    losses.sum().backward()


def learn(layout: TransitionLayout, hidden: tuple[int, ...], members: int, batch: int, *, norm: bool) -> None:
    settings = IQLCriticSettings(hidden=hidden, members=members, batch_size=batch, layer_norm=norm)
    observations, actions, numbers = (torch.randn(9, n) for n in (layout.observation_dim, layout.action_dim, 1))
    data = Transitions(observations, actions, numbers, observations, actions, numbers)
    learner = ImplicitQLearning(IQLCritic(layout, settings), data, numbers, settings, 0.9, seed=0)
    assert learner.native is not None
    learner.train_until(3)


def learn_policy(layout: TransitionLayout, hidden: tuple[int, ...], members: int, batch: int) -> None:
    settings = ReBRACCriticSettings(hidden=hidden, members=members, batch_size=batch)
    observations, actions, numbers = (torch.randn(9, n) for n in (layout.observation_dim, layout.action_dim, 1))
    data = Transitions(observations, actions, numbers, observations, actions, numbers)
    learner = ReBRACLearning(ReBRACCritic(layout, settings).requires_grad_(False), data, settings, 0.9, seed=0)
    assert learner.native is not None
    learner.train_until(3)


def main() -> None:
    done = 0
    for layout, hidden, members, batch, norm in itertools.product(
        LAYOUTS, ((16,), (48, 32), (16, 16, 16)), (1, 3), (1, 7, 33), (False, True)
    ):
        learn(layout, hidden, members, batch, norm=norm)
        learn_policy(layout, hidden, members, batch)
        done += 1
    shapes = itertools.product(LAYOUTS, SIZES, (1, 3), ("absolute", "rotary"), PRECISIONS)
    for layout, (n_embd, n_head), window, positions, dtype in shapes:
        gpt = model(layout, n_embd, n_head, window, positions, bins=2 if window == 1 else 101)
        for rows in (1, 7, 33):
            done += 1 + decode(gpt, rows, window, dtype)
            train(gpt, rows, window, dtype)
    with torch_threads(2):
        for dtype in PRECISIONS:
            decode(model(LAYOUTS[1], 64, 4, 3, "rotary", 101), 100, 3, dtype)
            train(model(LAYOUTS[1], 64, 4, 3, "rotary", 101), 100, 3, dtype)
            done += 2
    print(done)


if __name__ == "__main__":
    main()
