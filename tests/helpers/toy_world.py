"""A small world for the tests: a walk on a line, data of mixed quality from it, and a model to learn from those."""

from __future__ import annotations

import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import pytorch_lightning as pl
from gymnasium.spaces import Box

from trajectory.behaviour.record import RecordedEpisode
from trajectory.critic.settings import CriticSettings
from trajectory.data.datamodule import TrajectoryDataModule
from trajectory.data.settings import TokenizerSettings
from trajectory.data.source import locate
from trajectory.data.store import STORE_VARIABLE, save_episodes
from trajectory.environments.settings import EnvironmentSettings
from trajectory.interruption import Interruption
from trajectory.model.checkpoint_io import CheckpointFiles
from trajectory.model.module import TrajectoryModule
from trajectory.model.settings import GPTSettings, OptimizerSettings
from trajectory.planning.settings import PlannerSettings

TOY = "ToyWorld-v0"
STEPS = 20
DRIFTS = (-0.4, 0.0, 0.4)  # of the three behaviour policies, in steps of 0.2 to the right


class ToyWorld(gymnasium.Env):
    """A walk on a line: a small reward near the start, a large one far to the right, a cliff on the left."""

    def __init__(self) -> None:
        self.observation_space = Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-0.2, 0.2)
        return np.array([self.position], np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.position = min(1.0, self.position + 0.2 * float(action[0]) + 0.02 * self.np_random.standard_normal())
        reward = 1.0 if self.position > 0.7 else 0.1 if abs(self.position) < 0.3 else 0.0
        return np.array([self.position], np.float32), reward, self.position < -0.9, False, {}


gymnasium.register(TOY, entry_point="helpers.toy_world:ToyWorld", max_episode_steps=STEPS)
TOY_ENVIRONMENT = EnvironmentSettings("toy", TOY)


def record_toy_episodes(
    episodes: int, seed: int, drifts: tuple[float, ...] = DRIFTS, noise: float = 0.5
) -> list[RecordedEpisode]:
    """Episodes of noisy policies in turn, by default of one to the cliff, one that stays, one to the large reward."""
    rng = np.random.default_rng(seed)
    env = gymnasium.make(TOY)
    recorded = []
    for index in range(episodes):
        observation, _ = env.reset(seed=seed * 100_000 + index)
        observations, actions, rewards = [observation], [], []
        terminated = done = False
        while not done:
            action = np.clip(rng.normal(drifts[index % len(drifts)], noise, 1), -1.0, 1.0).astype(np.float32)
            observation, reward, terminated, truncated, _ = env.step(action)
            observations.append(observation)
            actions.append(action)
            rewards.append(float(reward))
            done = terminated or truncated
        recorded.append(RecordedEpisode(np.stack(observations), np.stack(actions), np.array(rewards), terminated))
    return recorded


def toy_data(
    store: Path,
    tokenizer: TokenizerSettings,
    *,
    episodes: int,
    window: int,
    batch_size: int,
    seed: int = 0,
    **behaviour: Any,
) -> TrajectoryDataModule:
    """Toy episodes, of `record_toy_episodes`, written to and read from a Minari store of their own."""
    recorded = record_toy_episodes(episodes, seed, **behaviour)
    options = {"window": window, "batch_size": batch_size, "seed": seed}
    return stored_data(store, "toy/mixed-v0", recorded, TOY_ENVIRONMENT, tokenizer, **options)


def stored_data(
    store: Path,
    dataset_id: str,
    episodes: list[RecordedEpisode],
    environment: EnvironmentSettings,
    tokenizer: TokenizerSettings,
    **options: Any,
) -> TrajectoryDataModule:
    """Episodes written to and read from a Minari store of their own; `options` are of `TrajectoryDataModule`."""
    about = dict.fromkeys(("algorithm_name", "author", "code_permalink", "description"), "tests")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STORE_VARIABLE, str(store))
        save_episodes(dataset_id, episodes, environment, **about)
        source = locate({"source": "minari", "id": dataset_id}, environment)
        loaded = source.load()
        source = replace(source, read=lambda **_: loaded)  # also when the store is another
        data = TrajectoryDataModule(source, tokenizer, **options)
        data.setup()
    return data


def toy_module(
    data: TrajectoryDataModule,
    model: GPTSettings,
    planner: PlannerSettings,
    optimizer: OptimizerSettings | None = None,
    environment: EnvironmentSettings = TOY_ENVIRONMENT,
    critic: CriticSettings | None = None,
) -> TrajectoryModule:
    """An untrained module for the toy data, with all that a checkpoint holds."""
    module = TrajectoryModule(
        layout=asdict(data.layout),
        model=asdict(model),
        optimizer=asdict(optimizer or OptimizerSettings()),
        tokenizer=asdict(data.tokenizer),
        environment=asdict(environment),
        dataset=data.summary,
        planner=asdict(planner),
        critic=None if critic is None else asdict(critic),
    )
    module.load_discretizer(data.discretizer)
    return module


def fit(
    module: TrajectoryModule, data: TrajectoryDataModule, steps: int, checkpoint: Path | None = None, **trainer: Any
) -> pl.Trainer:
    """Train on the CPU as `train.py` does, without its loggers and checkpoints unless given."""
    defaults: dict[str, Any] = {"logger": False, "plugins": [CheckpointFiles()]}
    fitted = pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        devices=1,
        gradient_clip_val=1.0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{**defaults, **trainer},
    )
    fitted.fit(module, data, ckpt_path=checkpoint)
    return fitted


class StopAfter(pl.Callback):
    """A signal in the batch of that number of a process."""

    def __init__(self, interruption: Interruption, batch: int) -> None:
        self.interruption, self.left = interruption, batch

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.left -= 1
        if self.left == 0:
            self.interruption.received = signal.SIGUSR1
