"""Planning while training: at the right steps, on the same seeds, and without a trace in the training."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gymnasium.spaces import Box
from pytorch_lightning.loggers import CSVLogger

from helpers.toy_world import STEPS, TOY, TOY_ENVIRONMENT, fit, toy_data, toy_module
from trajectory import TrajectoryAgent
from trajectory.data.datamodule import TrajectoryDataModule
from trajectory.data.settings import TokenizerSettings
from trajectory.environments.settings import EnvironmentSettings
from trajectory.evaluation.callback import PlanningEvaluation
from trajectory.evaluation.rollout import run_episodes
from trajectory.model.module import TrajectoryModule
from trajectory.model.settings import GPTSettings
from trajectory.planning.settings import PlannerSettings, SamplingSettings

PLANNER = PlannerSettings(beam_width=2, horizon=2, context=1, action=SamplingSettings(top_p=0.9))
MODEL = GPTSettings(
    n_layer=1,
    n_head=1,
    n_embd=8,
    window=3,
    bins=10,
    embedding_dropout=0.2,
    residual_dropout=0.2,
    attention_dropout=0.2,
)
DISCOUNT = 0.95
SEEDS = [3, 4, 5]
GIVEN_RETURNS = "GivenReturns-v0"


class GivenReturns(gymnasium.Env):
    """Episodes of one step, the next of the given returns each, whatever is done."""

    returns: ClassVar[Iterator[float]] = iter(())

    def __init__(self) -> None:
        self.observation_space = Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.zeros(1, np.float32), next(self.returns), True, False, {}


gymnasium.register(GIVEN_RETURNS, entry_point="test_planning_callback:GivenReturns", max_episode_steps=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrajectoryDataModule:
    tokenizer = TokenizerSettings(bins=10, discount=DISCOUNT)
    return toy_data(tmp_path_factory.mktemp("store"), tokenizer, episodes=30, window=3, batch_size=16)


def evaluation(env_id: str = TOY, every_n_steps: int | None = 3, **options: Any) -> PlanningEvaluation:
    environment = EnvironmentSettings("toy", env_id, reference={"random": 1.0, "expert": 11.0})
    return PlanningEvaluation(environment, PLANNER, DISCOUNT, every_n_steps=every_n_steps, seeds=SEEDS, **options)


def train(data: TrajectoryDataModule, steps: int, *callbacks: pl.Callback, seed: int = 0, **options: Any) -> pl.Trainer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return fit(toy_module(data, MODEL, PLANNER), data, steps, callbacks=list(callbacks), **options)


def weights(trainer: pl.Trainer) -> dict[str, torch.Tensor]:
    return trainer.lightning_module.state_dict()


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


class Snapshots(pl.Callback):
    """Keeps the weights of every step."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.weights[trainer.global_step] = {name: value.clone() for name, value in pl_module.state_dict().items()}


@pytest.mark.parametrize(
    ("every_n_steps", "steps"), [(3, [3, 6, 9, 10]), (5, [5, 10]), (10, [10]), (11, [10]), (None, [])]
)
def test_it_evaluates_at_its_steps_and_at_the_end_with_its_seeds(
    data: TrajectoryDataModule, every_n_steps: int | None, steps: list[int]
) -> None:
    callback = evaluation(every_n_steps=every_n_steps, max_steps=2)
    train(data, 10, callback)
    assert [entry["step"] for entry in callback.history] == steps
    for entry in callback.history:
        assert [(episode["seed"], episode["length"]) for episode in entry["episodes"]] == [(seed, 2) for seed in SEEDS]


class Watched(PlanningEvaluation):
    """Takes down all that must stay as it is, before and after every evaluation."""

    def evaluate(self, trainer: pl.Trainer, module: pl.LightningModule, *, final: bool = False) -> dict[str, Any]:
        self.before = self.take_down(module)
        summary = super().evaluate(trainer, module, final=final)
        self.after = self.take_down(module)
        return summary

    @staticmethod
    def take_down(module: pl.LightningModule) -> dict[str, Any]:
        return {
            "python": random.getstate(),
            "numpy": np.random.get_state(),  # noqa: NPY002
            "torch": torch.get_rng_state().tolist(),
            "modes": {name: part.training for name, part in module.named_modules()},
            "weights": {name: value.tolist() for name, value in module.state_dict().items()},
            "gradients": torch.is_grad_enabled(),
        }


class Freeze(pl.Callback):
    """Leaves one part of the model in evaluation mode, as for a part that is not trained."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrajectoryModule)
        pl_module.gpt.blocks[0].eval()


@pytest.mark.parametrize("callbacks", [[], [Freeze()]], ids=["all in train mode", "a part in evaluation mode"])
def test_random_states_modes_and_weights_are_left_exactly_as_they_were(
    data: TrajectoryDataModule, callbacks: list[pl.Callback]
) -> None:
    plain = evaluation()
    watched = Watched(plain.environment, PLANNER, DISCOUNT, every_n_steps=2, seeds=SEEDS)
    train(data, 2, *callbacks, watched)
    assert len(watched.history) == 1
    assert set(watched.before["modes"].values()) == ({True, False} if callbacks else {True})
    for name, value in watched.before.items():
        np.testing.assert_equal(watched.after[name], value, err_msg=name)


def test_a_seed_gives_the_same_training_with_and_without_evaluation(data: TrajectoryDataModule, tmp_path: Path) -> None:
    plain = weights(train(data, 9))
    assert same(plain, weights(train(data, 9)))
    assert same(plain, weights(train(data, 9, evaluation(every_n_steps=2, best_path=tmp_path / "best.ckpt"))))
    assert not same(plain, weights(train(data, 9, seed=1)))


def test_dropout_is_off_while_planning(data: TrajectoryDataModule) -> None:
    """The same model and seeds give the same episodes, as often as they are asked for, and as in evaluation mode."""
    callback = evaluation()
    trainer = train(data, 3, callback)
    module = trainer.lightning_module
    assert isinstance(module, TrajectoryModule)
    module.train()
    first, second = (callback.evaluate(trainer, module)["episodes"] for _ in range(2))
    assert first == second == callback.history[0]["episodes"]
    agent = TrajectoryAgent(module.gpt.eval(), module.discretizer, PLANNER, DISCOUNT)
    alone = run_episodes(agent, TOY_ENVIRONMENT, SEEDS, progress=False)
    assert [episode.episode_return for episode in alone.episodes] == [episode["return"] for episode in first]


def test_the_best_checkpoint_is_kept(
    data: TrajectoryDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Means 1, 4, 4 and 2 at steps 2, 4, 6 and 8: the first of the best stays."""
    monkeypatch.setattr(GivenReturns, "returns", iter([0.0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 2, 2]))
    path = tmp_path / "best.ckpt"
    callback, snapshots = evaluation(GIVEN_RETURNS, every_n_steps=2, best_path=path), Snapshots()
    train(data, 8, callback, snapshots)
    assert [entry["return_mean"] for entry in callback.history] == [1.0, 4.0, 4.0, 2.0]
    assert callback.best == 4.0
    content = torch.load(path, weights_only=True)
    assert content["global_step"] == 4
    assert same(content["state_dict"], snapshots.weights[4])
    assert not same(content["state_dict"], snapshots.weights[6])
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_without_a_path_no_checkpoint_is_kept(
    data: TrajectoryDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(data, 3, evaluation())
    assert list(tmp_path.iterdir()) == []


def test_the_best_checkpoint_plans_as_the_model_did(data: TrajectoryDataModule, tmp_path: Path) -> None:
    """Read back without Lightning, with nothing restated."""
    callback = evaluation(every_n_steps=4, best_path=tmp_path / "best.ckpt")
    train(data, 4, callback)
    agent = TrajectoryAgent.from_checkpoint(tmp_path / "best.ckpt")
    assert (agent.settings, agent.discount) == (PLANNER, DISCOUNT)
    rollouts = run_episodes(agent, TOY_ENVIRONMENT, SEEDS, progress=False)
    expected = [episode["return"] for episode in callback.history[0]["episodes"]]
    assert [episode.episode_return for episode in rollouts.episodes] == expected


def test_lightning_reads_the_checkpoint_as_its_own(data: TrajectoryDataModule, tmp_path: Path) -> None:
    """Weights, optimiser and schedule are all in it."""
    train(data, 4, evaluation(every_n_steps=4, max_steps=1, best_path=tmp_path / "best.ckpt"))
    content = torch.load(tmp_path / "best.ckpt", weights_only=True)
    module = TrajectoryModule.load_from_checkpoint(tmp_path / "best.ckpt", weights_only=True)
    assert same(module.state_dict(), content["state_dict"])
    assert content["optimizer_states"][0]["state"]
    assert content["lr_schedulers"][0]["last_epoch"] == 4


def test_metrics_reach_every_logger(data: TrajectoryDataModule, tmp_path: Path) -> None:
    callback = evaluation(every_n_steps=3)
    train(data, 6, callback, logger=CSVLogger(tmp_path, name="", version=""), log_every_n_steps=1)
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["evaluation/return_mean"]]
    assert [int(row["step"]) for row in rows] == [3, 6]
    for row, entry in zip(rows, callback.history, strict=True):
        assert float(row["evaluation/return_mean"]) == entry["return_mean"]
        assert float(row["evaluation/return_std"]) == entry["return_std"]
        assert float(row["evaluation/normalized_score_mean"]) == pytest.approx(10 * (entry["return_mean"] - 1))
        lengths = [episode["length"] for episode in entry["episodes"]]
        assert float(row["evaluation/length_mean"]) == pytest.approx(np.mean(lengths))
        assert max(lengths) <= STEPS
        assert float(row["evaluation/decision_latency_ms"]) > 0


def test_its_own_planner_settings_count(data: TrajectoryDataModule) -> None:
    """Not those of the module's hyperparameters."""
    callback = evaluation(every_n_steps=2)
    callback.planner = replace(PLANNER, context=MODEL.window)
    with pytest.raises(ValueError, match=r"^planner\.context must"):
        train(data, 2, callback)
