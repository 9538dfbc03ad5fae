"""Record whole episodes of a behaviour policy, vectorised and seeded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from tqdm import tqdm

from trajectory.behaviour.policy import GaussianPolicy

ENVIRONMENTS = 16  # at most, side by side under one batched policy call


@dataclass
class RecordedEpisode:
    """One episode as it happened: L transitions and L + 1 observations."""

    observations: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminated: bool = False


def record_episodes(
    env_id: str,
    policy: GaussianPolicy | None,
    *,
    steps: int,
    seed: int,
) -> list[RecordedEpisode]:
    """Record at least `steps` transitions in whole episodes, in the order the episodes began.

    New episodes begin until those begun hold `steps` transitions; all of them are then run to their end, so no
    episode is cut off by the recording and long ones are as likely to be kept as short ones.

    Args:
        policy: None acts uniformly at random in the action space.
        seed: seeds environments and actions; the same seed and versions give the same bytes.
    """
    environments = min(ENVIRONMENTS, 1 + steps // 2_000)
    envs = [gymnasium.make(env_id) for _ in range(environments)]
    space: Any = envs[0].action_space
    low, high = space.low, space.high
    seeds = np.random.SeedSequence(seed).spawn(environments + 1)
    rng = np.random.default_rng(seeds[-1])
    episodes: list[RecordedEpisode] = []
    running: dict[int, RecordedEpisode] = {}

    def begin(slot: int, first_seed: int | None = None) -> None:
        observation, _ = envs[slot].reset(seed=first_seed)
        running[slot] = RecordedEpisode(observations=[observation])
        episodes.append(running[slot])

    for slot in range(environments):
        begin(slot, int(seeds[slot].generate_state(1)[0]))
    recorded = 0
    with tqdm(total=steps, desc=f"recording {env_id}", unit="step", unit_scale=True) as progress:
        while running:
            noise = rng.standard_normal((environments, len(low)))
            uniform = rng.random((environments, len(low)))
            slots = list(running)
            if policy is None:
                actions = (low + (high - low) * uniform[slots]).astype(np.float32)
            else:
                observations = np.stack([running[slot].observations[-1] for slot in slots])
                actions = np.clip(policy.act(observations, noise[slots]), low, high).astype(np.float32)
            recorded += len(slots)
            progress.update(min(len(slots), max(0, progress.total - progress.n)))
            for slot, action in zip(slots, actions, strict=True):
                episode = running[slot]
                observation, reward, terminated, truncated, _ = envs[slot].step(action)
                episode.observations.append(observation)
                episode.actions.append(action)
                episode.rewards.append(float(reward))
                episode.terminated = terminated
                if terminated or truncated:
                    del running[slot]
                    if recorded < steps:
                        begin(slot)
    for env in envs:
        env.close()
    return episodes
