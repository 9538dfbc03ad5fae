"""Record whole episodes with behaviour policies, vectorised and seeded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from trajectory.behaviour.controllers import Controller
from trajectory.behaviour.policy import GaussianPolicy
from trajectory.environments.make import flatten, make_raw_environment
from trajectory.environments.settings import EnvironmentSettings
from trajectory.progress import progress_bar

# a policy, a controller that is made for every episode, or None for uniformly random actions
BehaviourPolicy = GaussianPolicy | type[Controller] | None

MAX_ENVIRONMENTS = 16  # side by side in one batched call of the policy


@dataclass(frozen=True)
class RecordedEpisode:
    """One episode with L transitions and L + 1 observations.

    Args:
        observations: (L + 1, observation_dim); for a Dict observation space, a dictionary of such arrays.
        actions: (L, action_dim).
        rewards: (L,) float64.
        terminated: whether the task ended; otherwise a time limit cut the episode off.
    """

    observations: Any
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool


class _UnfinishedEpisode:
    """An episode that is being recorded."""

    def __init__(self, number: int, observation: Any) -> None:
        self.number = number
        self.observations = [observation]
        self.actions: list[np.ndarray] = []
        self.rewards: list[float] = []

    def finish(self, terminated: bool) -> RecordedEpisode:
        """The episode as arrays, which need much less memory."""
        first = self.observations[0]
        observations: Any = (
            {key: np.stack([observation[key] for observation in self.observations]) for key in first}
            if isinstance(first, dict)
            else np.stack(self.observations)
        )
        return RecordedEpisode(observations, np.stack(self.actions), np.array(self.rewards), terminated)


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
    space: Any = envs[0].action_space
    low, high = space.low, space.high
    seeds = seed.spawn(slots + 1)
    rng = np.random.default_rng(seeds[-1])
    episodes: dict[int, RecordedEpisode] = {}
    unfinished: dict[int, _UnfinishedEpisode] = {}
    controllers: dict[int, Controller] = {}
    begun = recorded = 0

    def begin(slot: int, first_seed: int | None = None) -> None:
        nonlocal begun
        observation, _ = envs[slot].reset(seed=first_seed)
        unfinished[slot] = _UnfinishedEpisode(begun, observation)
        if policy is not None and not isinstance(policy, GaussianPolicy):
            controllers[slot] = policy(envs[slot], rng)
        begun += 1

    for slot in range(slots):
        begin(slot, int(seeds[slot].generate_state(1)[0]))
    while unfinished:
        noise = rng.standard_normal((slots, len(low)))
        uniform = rng.random((slots, len(low)))
        active = list(unfinished)
        if policy is None:
            actions = (low + (high - low) * uniform[active]).astype(space.dtype)
        else:
            keys = environment.observation_keys
            observations = np.stack([flatten(unfinished[slot].observations[-1], keys) for slot in active])
            if isinstance(policy, GaussianPolicy):
                actions = policy.act(observations, noise[active])
            else:
                actions = np.stack([controllers[s].act(o) for s, o in zip(active, observations, strict=True)])
            actions = np.clip(actions, low, high).astype(space.dtype)
        progress.update(min(len(active), max(0, steps - recorded)))
        recorded += len(active)
        for slot, action in zip(active, actions, strict=True):
            episode = unfinished[slot]
            observation, reward, terminated, truncated, _ = envs[slot].step(action)
            episode.observations.append(observation)
            episode.actions.append(action)
            episode.rewards.append(float(reward))
            if terminated or truncated:
                episodes[episode.number] = episode.finish(terminated)
                del unfinished[slot]
                if recorded < steps:
                    begin(slot)
    for env in envs:
        env.close()
    return [episodes[number] for number in range(begun)]
