"""Draws some steps of an environment, at every sixth of which a plan foresees five still steps, what came, or nothing.

As a script, with an environment's id, "still", "true" or "", and folders, in each of which it is drawn. MuJoCo's import
decides which GL is used.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from trajectory.environments.make import choose_gl

SIZE, STEPS, HORIZON = 96, 21, 6


def draw(id: str, foresees: str, folder: Path) -> None:
    """An episode of that many steps."""
    import gymnasium
    import numpy as np

    from trajectory.environments.settings import EnvironmentSettings
    from trajectory.evaluation.episodes import Recording
    from trajectory.evaluation.video import draw_episode
    from trajectory.planning.trajectory import PlannedTrajectory

    env: Any = gymnasium.make(id)
    observation, _ = env.reset(seed=0)
    recording, observations = Recording(discount=0.99 if foresees else None), []
    for _ in range(STEPS):
        observations.append(observation)
        recording.states.append(env.unwrapped.data.qpos.copy())
        observation, reward, *_ = env.step(np.ones(env.action_space.shape, np.float32))
        recording.rewards.append(float(reward))
    for step in range(0, STEPS if foresees else 0, HORIZON):
        ahead = observations[step : step + HORIZON]
        ahead = np.stack(ahead if foresees == "true" else ahead[:1] * HORIZON)
        numbers = np.ones(len(ahead))
        recording.plans[step] = PlannedTrajectory(ahead, ahead[:, :3], numbers, numbers, False, 0.0, 0.0)
    draw_episode(folder, EnvironmentSettings("any", id), recording, terminated=False, size=SIZE, progress=False)


if __name__ == "__main__":
    choose_gl()
    for folder in sys.argv[3:]:
        draw(sys.argv[1], sys.argv[2], Path(folder))
