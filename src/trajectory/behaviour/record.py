"""Record whole episodes with behaviour policies, vectorised and seeded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from trajectory.behaviour.controllers import Controller
from trajectory.behaviour.policy import GaussianPolicy
from trajectory.environments.make import make_raw_environment
from trajectory.environments.settings import EnvironmentSettings
from trajectory.progress import progress_bar
from trajectory.spaces import FlatSpace, stack, storable

# a policy, a controller that is made for every episode, or None for uniformly random actions
BehaviourPolicy = GaussianPolicy | type[Controller] | None

MAX_ENVIRONMENTS = 16  # side by side in one batched call of the policy


@dataclass(frozen=True)
class RecordedEpisode:
    """One episode with L transitions and L + 1 observations.

    Args:
        observations: (L + 1, ...); for a Dict or Tuple, a dictionary or tuple of such arrays.
        actions: (L, ...), in the same way.
        rewards: (L,) float64.
        terminated: whether the task ended; otherwise a time limit cut the episode off.
    """

    observations: Any
    actions: Any
    rewards: np.ndarray
    terminated: bool


class _UnfinishedEpisode:
    """An episode that is being recorded."""

    def __init__(self, number: int, observation: Any) -> None:
        self.number = number
        self.observations = [observation]
        self.actions: list[Any] = []
        self.rewards: list[float] = []

    def finish(self, env: Any, terminated: bool) -> RecordedEpisode:
        """The episode as arrays, which need much less memory."""
        observations = stack(self.observations, storable(env.observation_space))
        return RecordedEpisode(
            observations, stack(self.actions, env.action_space), np.array(self.rewards), bool(terminated)
        )


def record_episodes(
    environment: EnvironmentSettings,
    policies: Sequence[BehaviourPolicy],
    *,
    steps: int,
    seed: int,
) -> list[RecordedEpisode]:
    """Record at least `steps` transitions, in equal parts from each policy, one policy after the other.

    The episodes are whole and in the order of their starts. New ones start until a policy's part is recorded, and all
    of them then run to their end. So the recording cuts no episode off and does not favour short ones.

    Args:
        policies: None acts uniformly at random in the action space.
        seed: of environments and actions. The same seed and versions give the same bytes.
    """
    seeds = np.random.SeedSequence(seed).spawn(len(policies)) if len(policies) > 1 else [np.random.SeedSequence(seed)]
    episodes: list[RecordedEpisode] = []
    with progress_bar(total=steps, desc=f"recording {environment.id}", unit="step", unit_scale=True) as progress:
        for index, policy in enumerate(policies):
            part = steps * (index + 1) // len(policies) - steps * index // len(policies)
            if part > 0:
                episodes += _record_policy(environment, policy, part, seeds[index], progress)
    return episodes


def _record_policy(
    environment: EnvironmentSettings,
    policy: BehaviourPolicy,
    steps: int,
    seed: np.random.SeedSequence,
    progress: tqdm,
) -> list[RecordedEpisode]:
    slots = min(MAX_ENVIRONMENTS, 1 + steps // 2_000)
    envs = [make_raw_environment(environment) for _ in range(slots)]
    name = f"env.id={environment.id}"
    space = FlatSpace.of(envs[0].action_space, "action", name)
    observation = FlatSpace.of(envs[0].observation_space, "observation", name, environment.observation_keys)
    seeds = seed.spawn(slots + 1)
    rng = np.random.default_rng(seeds[-1])
    episodes: dict[int, RecordedEpisode] = {}
    unfinished: dict[int, _UnfinishedEpisode] = {}
    controllers: dict[int, Controller] = {}
    begun = recorded = 0

    def begin(slot: int, first_seed: int | None = None) -> None:
        nonlocal begun
        seen, _ = envs[slot].reset(seed=first_seed)
        unfinished[slot] = _UnfinishedEpisode(begun, seen)
        if policy is not None and not isinstance(policy, GaussianPolicy):
            controllers[slot] = policy(envs[slot], rng)
        begun += 1

    for slot in range(slots):
        begin(slot, int(seeds[slot].generate_state(1)[0]))
    while unfinished:
        noise = rng.standard_normal((slots, space.size))
        uniform = rng.random((slots, space.size))
        active = list(unfinished)
        if policy is None:
            actions = space.random(uniform[active], noise[active])
        else:
            observations = np.stack([observation.flatten(unfinished[slot].observations[-1]) for slot in active])
            if isinstance(policy, GaussianPolicy):
                actions = policy.act(observations, noise[active])
            else:
                actions = np.stack([controllers[s].act(o) for s, o in zip(active, observations, strict=True)])
            actions = np.clip(actions, space.low, space.high)
        progress.update(min(len(active), max(0, steps - recorded)))
        recorded += len(active)
        for slot, action in zip(active, map(space.unflatten, actions), strict=True):
            episode = unfinished[slot]
            seen, reward, terminated, truncated, _ = envs[slot].step(action)
            episode.observations.append(seen)
            episode.actions.append(action)
            episode.rewards.append(float(reward))
            if terminated or truncated:
                episodes[episode.number] = episode.finish(envs[slot], terminated)
                del unfinished[slot]
                if recorded < steps:
                    begin(slot)
    for env in envs:
        env.close()
    return [episodes[number] for number in range(begun)]
