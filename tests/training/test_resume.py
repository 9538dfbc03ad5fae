"""A training that is ended anywhere and continued is the one that was never ended, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from helpers.checkpoints import assert_same_end, same
from helpers.command_line import TINY, compose_config, run_main_here
from helpers.toy_world import TOY_ENVIRONMENT, StopAfter, fit, toy_data, toy_module
from trajectory.critic.callback import CriticTraining
from trajectory.critic.settings import CriticSettings, IQLCriticSettings, ReBRACCriticSettings
from trajectory.data.datamodule import TrajectoryDataModule
from trajectory.data.settings import TokenizerSettings
from trajectory.errors import UserError
from trajectory.evaluation.callback import PlanningEvaluation
from trajectory.evaluation.episodes import EpisodeResult
from trajectory.interruption import Interruption
from trajectory.locks import run_dir_lock
from trajectory.model.callbacks.finite_gradients import FiniteGradients
from trajectory.model.callbacks.last_checkpoint import LastCheckpoint
from trajectory.model.checkpoint import read_checkpoint
from trajectory.model.module import TrajectoryModule
from trajectory.model.settings import GPTSettings, OptimizerSettings
from trajectory.planning.settings import PlannerSettings
from trajectory.resume import checkpoint_to_resume, finished_results, run_folder

PLANNER = PlannerSettings(beam_width=2, horizon=2, context=1, value="critic")
CRITIC = IQLCriticSettings(hidden=(8,), steps=40, batch_size=16)
REBRAC = ReBRACCriticSettings(hidden=(8,), steps=40, batch_size=16)
MODEL = GPTSettings(
    n_layer=1, n_head=1, n_embd=8, window=3, bins=10, embedding_dropout=0.2, residual_dropout=0.2, attention_dropout=0.2
)
OPTIMIZER = OptimizerSettings(ema_decay=0.7, muon_learning_rate=0.02)
STEPS = 14  # nearly three epochs of five batches


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


def make_data(store: Path, episodes: int = 12) -> TrajectoryDataModule:
    return toy_data(store, TokenizerSettings(bins=10), episodes=episodes, window=3, batch_size=40)


@pytest.fixture(scope="module")
def data(store: Path) -> TrajectoryDataModule:
    found = make_data(store)
    assert len(found.train_dataloader()) == 5
    return found


class Copies(pl.Callback):
    """Keeps every checkpoint that `LastCheckpoint` writes, by its step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        last = self.folder / "last.ckpt"
        if last.exists():
            os.link(last, self.folder / f"{trainer.global_step}.ckpt")


def evaluation(interruption: Interruption | None = None) -> PlanningEvaluation:
    return PlanningEvaluation(
        TOY_ENVIRONMENT, PLANNER, 0.99, every_n_steps=4, seeds=[3, 4], max_steps=4, interruption=interruption
    )


def train(
    data: TrajectoryDataModule,
    *callbacks: pl.Callback,
    checkpoint: Path | None = None,
    critic: CriticSettings = CRITIC,
    **flags: Any,
) -> pl.Trainer:
    """From seed 0, or from a checkpoint and whatever the generators hold."""
    if checkpoint is None:
        pl.seed_everything(0, verbose=False)
    module = toy_module(data, MODEL, PLANNER, OPTIMIZER, critic=critic)
    assert module.critic is not None
    training = CriticTraining(module.critic, data.source.load(), critic, data.tokenizer, seed=0, every_n_steps=1)
    return fit(module, data, STEPS, checkpoint, callbacks=[training, *callbacks], **flags)


def returns(planning: PlanningEvaluation) -> list[tuple[int, list[Any]]]:
    return [(entry["step"], entry["episodes"]) for entry in planning.history]


@pytest.fixture(scope="module")
def straight(data: TrajectoryDataModule, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PlanningEvaluation]:
    """A training that is never ended, with the checkpoint of every step."""
    folder = tmp_path_factory.mktemp("straight")
    planning = evaluation()
    train(data, planning, LastCheckpoint(folder / "last.ckpt", 1), Copies(folder))
    return folder, planning


@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_training_continued_at_any_step_ends_as_one_never_ended(
    data: TrajectoryDataModule, straight: tuple[Path, PlanningEvaluation], tmp_path: Path, step: int
) -> None:
    """Within an epoch and at its end, with dropout, whatever the generators held before."""
    torch.manual_seed(step)
    folder, planned = straight
    planning = evaluation()
    trainer = train(data, planning, LastCheckpoint(tmp_path / "last.ckpt", 100), checkpoint=folder / f"{step}.ckpt")
    assert trainer.global_step == STEPS
    assert_same_end(tmp_path / "last.ckpt", folder / "last.ckpt")
    assert read_checkpoint(tmp_path / "last.ckpt")["callbacks"]["CriticTraining"]["updates"] == CRITIC.steps
    assert returns(planning) == returns(planned)
    assert planning.best == planned.best


def test_a_critic_with_a_policy_continues_as_one_never_ended(data: TrajectoryDataModule, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    train(data, LastCheckpoint(whole / "last.ckpt", 1), Copies(whole), critic=REBRAC)
    torch.manual_seed(1)
    train(data, LastCheckpoint(parts / "last.ckpt", 100), checkpoint=whole / "3.ckpt", critic=REBRAC)
    assert_same_end(parts / "last.ckpt", whole / "last.ckpt")


def test_a_training_in_bfloat16_continues_as_one_never_ended(data: TrajectoryDataModule, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    train(data, LastCheckpoint(whole / "last.ckpt", 1), Copies(whole), precision="bf16-mixed")
    assert read_checkpoint(whole / "7.ckpt")["process"]["precision"] == "bf16-mixed"
    for step in (3, 10):
        torch.manual_seed(step)
        last = LastCheckpoint(parts / f"{step}.ckpt", 100)
        train(data, last, checkpoint=whole / f"{step}.ckpt", precision="bf16-mixed")
        assert_same_end(parts / f"{step}.ckpt", whole / "last.ckpt")


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_training_continued_again_and_again_ends_as_one_never_ended(
    data: TrajectoryDataModule, straight: tuple[Path, PlanningEvaluation], tmp_path: Path, steps: int
) -> None:
    folder, planned = straight
    last = tmp_path / "last.ckpt"
    done, planning = 0, evaluation()
    while done < STEPS:
        interruption = Interruption()
        planning = evaluation(interruption)
        callbacks = (StopAfter(interruption, steps), planning, LastCheckpoint(last, 100, interruption))
        trainer = train(data, *callbacks, checkpoint=last if done else None)
        done = min(done + steps, STEPS)
        assert trainer.global_step == done
    assert_same_end(last, folder / "last.ckpt")
    assert returns(planning) == returns(planned)


def test_a_finished_training_is_not_trained_further(
    data: TrajectoryDataModule, straight: tuple[Path, PlanningEvaluation]
) -> None:
    folder, planned = straight
    planning = evaluation()
    trainer = train(data, planning, LastCheckpoint(folder / "none.ckpt", 1), checkpoint=folder / "last.ckpt")
    assert same(trainer.lightning_module.state_dict(), read_checkpoint(folder / "last.ckpt")["state_dict"])
    assert returns(planning) == returns(planned)
    assert not (folder / "none.ckpt").exists()


def test_the_checkpoint_before_the_last_is_kept(straight: tuple[Path, PlanningEvaluation]) -> None:
    folder, _ = straight
    steps = {name: read_checkpoint(folder / f"{name}.ckpt")["global_step"] for name in ("last", "previous")}
    assert steps == {"last": STEPS, "previous": STEPS - 1}
    assert [path for path in folder.iterdir() if path.suffix != ".ckpt" or path.name == "next.ckpt"] == []


class SignalAt(pl.Callback):
    """The process gets a signal in a step, or in the evaluation after it."""

    def __init__(self, step: int, *, planning: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.step = step
        if planning:
            seen = vars(EpisodeResult)["__init__"]
            # an environment step of the evaluation cannot know of the training: the episode's result is made there
            monkeypatch.setattr(EpisodeResult, "__init__", lambda *args, **kw: (self.send(), seen(*args, **kw))[1])
        self.planning = planning
        self.trainer: pl.Trainer | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.trainer = trainer
        if not self.planning and trainer.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def send(self) -> None:
        if self.trainer is not None and self.trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("step", "planning"), [(7, False), (8, False), (8, True), (10, False)])
def test_a_signal_stops_after_its_step_with_a_checkpoint_that_leads_to_the_same_end(
    data: TrajectoryDataModule,
    straight: tuple[Path, PlanningEvaluation],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    planning: bool,
) -> None:
    """Also at an epoch's end (10) and where an evaluation is broken off (8), which is made up for."""
    interruption = Interruption()
    last = LastCheckpoint(tmp_path / "last.ckpt", 100, interruption)
    first = evaluation(interruption)
    with interruption.handle_signals(defer=True):
        trainer = train(data, SignalAt(step, planning=planning, monkeypatch=monkeypatch), first, last)
    monkeypatch.undo()
    assert interruption.received == signal.SIGTERM
    assert trainer.global_step == step
    assert [entry["step"] for entry in first.history] == [4, 8][: 2 if step > 8 else 1]
    with pytest.raises(SystemExit) as leave:
        interruption.exit_if_preempted()
    assert leave.value.code == 143
    second = evaluation()
    train(data, second, LastCheckpoint(tmp_path / "end.ckpt", 100), checkpoint=tmp_path / "last.ckpt")
    folder, planned = straight
    assert_same_end(tmp_path / "end.ckpt", folder / "last.ckpt")
    assert returns(second) == returns(planned)


class Poison(pl.Callback):
    """Makes one weight NaN for the given step, the `step`-th of the training."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.batch: torch.Tensor | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step - 1:
            assert isinstance(pl_module, TrajectoryModule)
            self.before = {name: value.clone() for name, value in pl_module.gpt.state_dict().items()}
            self.batch = batch[0]
            pl_module.gpt.head.data[0, 0] = torch.nan

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            assert isinstance(pl_module, TrajectoryModule)
            pl_module.gpt.head.data[0, 0] = self.before["head"][0, 0]
            self.after = {name: value.clone() for name, value in pl_module.gpt.state_dict().items()}


@pytest.mark.parametrize("asked", [1, 5, 100])
def test_a_step_that_is_not_finite_is_named_and_ends_the_training(store: Path, tmp_path: Path, asked: int) -> None:
    """Also where it is asked for some steps later, as on GPUs: at the latest before the next checkpoint."""
    data = make_data(store.parent / f"more{asked}", episodes=60)
    poison, guard = Poison(7), FiniteGradients(skip=False, every_n_steps=asked)
    with pytest.raises(UserError) as error:
        train(data, poison, guard, LastCheckpoint(tmp_path / "last.ckpt", 3))
    assert data.windows is not None
    assert poison.batch is not None
    rows = data.batches.rows_of(6, 7)  # the seventh batch of the first epoch
    assert torch.equal(data.windows[rows][0], poison.batch)
    named = str(error.value).partition("episodes: ")[2].partition(" and others")[0].split(", ")
    assert len(named) == 20
    assert {int(episode) for episode in named} <= set(data.windows.episodes_of(rows).tolist())
    for words in ("train/loss", "must be finite", "at step 7", "nan in gpt.", "callbacks.guard.skip=true"):
        assert words in str(error.value)
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 6


def test_a_step_that_is_not_finite_is_named_after_its_epoch(data: TrajectoryDataModule) -> None:
    """When the epoch's order of windows is still known, and not that of the next."""
    with pytest.raises(UserError, match=r"at step 9, on windows of episodes [\d, ]+;") as error:
        train(data, Poison(9), FiniteGradients(skip=False, every_n_steps=100))
    assert data.batches.epoch == 1
    named = str(error.value).partition("episodes ")[2].partition(";")[0].split(", ")
    assert list(map(int, named)) == data.episodes_of_batch(3)


def test_such_steps_can_be_left_out_and_are_counted_also_when_continued(
    data: TrajectoryDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, poison = FiniteGradients(skip=True), Poison(3)
    monkeypatch.setattr("test_resume.OPTIMIZER", OptimizerSettings())  # the poison would stay in averaged weights
    trainer = train(data, poison, guard, LastCheckpoint(tmp_path / "last.ckpt", 5), Copies(tmp_path))
    assert same(poison.before, poison.after)
    assert (guard.skipped, trainer.global_step) == (1, STEPS)
    assert float(trainer.callback_metrics["train/skipped_steps"]) == 1
    assert all(weight.isfinite().all() for weight in trainer.lightning_module.parameters())
    continued = FiniteGradients(skip=True)
    train(data, continued, checkpoint=tmp_path / "5.ckpt")
    assert continued.skipped == 1


CONFIG: dict[str, Any] = {
    "seed": 0,
    "resume": True,
    "checkpoint": None,
    "debug": False,
    "trainer": {"max_steps": 9},
    "runtime": {"threads": "auto"},
    "callbacks": {"guard": {"skip": False}},
}


def run(parent: Path, name: str, results: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A run's folder."""
    folder = parent / name
    folder.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(CONFIG | changes), folder / "config.yaml")
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results))
    return folder


def config(**changes: Any) -> DictConfig:
    return OmegaConf.create(CONFIG | changes)


def test_the_newest_unfinished_run_of_the_same_settings_is_continued(tmp_path: Path) -> None:
    def chosen(**changes: Any) -> str:
        return Path(run_folder(str(tmp_path), "new", _root_=config(**changes))).name

    assert chosen() == "new"
    run(tmp_path, "1")
    cut_short = run(tmp_path, "2", results={"interrupted": True})
    run(tmp_path, "3", results={"interrupted": False})
    run(tmp_path, "4", seed=1)
    (tmp_path / "5").mkdir()
    (run(tmp_path, "6") / "config.yaml").write_text("{of something else")
    assert chosen() == "2"
    assert chosen(debug=True, logger={"name": "csv"}) == "2"
    assert chosen(resume=False) == "new"
    assert chosen(seed=1) == "4"
    assert chosen(seed=2) == "new"
    assert chosen(resume=False, checkpoint=str(tmp_path / "3" / "best.ckpt")) == "3"
    with run_dir_lock(cut_short):
        assert chosen() == "1"
        with pytest.raises(UserError, match=r"hydra\.run\.dir must be a folder that no other process works in"):
            run_dir_lock(cut_short).__enter__()
    assert chosen() == "2"


def test_a_folder_that_another_process_works_in_is_left_alone(tmp_path: Path) -> None:
    """From its very start, when there is nothing in it yet that could be told from what the second run wrote."""
    folder = tmp_path / "run"
    folder.mkdir()
    commands = {
        "train": TINY,
        "evaluate": ("checkpoint=last.ckpt",),
        "analyze": ("analysis=attention", "checkpoint=last.ckpt"),
    }
    with run_dir_lock(folder):
        for main, overrides in commands.items():
            process = run_main_here(main, *overrides, f"hydra.run.dir={folder}", folder=tmp_path)
            assert process.returncode == 1
            (line,) = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
            assert line == f"error: hydra.run.dir must be a folder that no other process works in, got {folder}"
            assert folder.is_dir()


def test_the_checkpoint_that_a_run_goes_on_from_is_kept_until_there_is_a_later_one(
    data: TrajectoryDataModule, straight: tuple[Path, PlanningEvaluation], tmp_path: Path
) -> None:
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    shutil.copy(straight[0] / "2.ckpt", previous)
    last.write_bytes(b"damaged")

    class Watch(pl.Callback):
        def __init__(self) -> None:
            self.steps: list[tuple[int, int]] = []

        def on_train_batch_start(
            self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
        ) -> None:
            if trainer.global_step > 2:
                self.steps.append((read_checkpoint(last)["global_step"], read_checkpoint(previous)["global_step"]))

    watch = Watch()
    train(data, LastCheckpoint(last, 1, resumed_from=previous), watch, checkpoint=previous)
    assert watch.steps == [(step, step - 1) for step in range(3, STEPS)]


def test_a_run_killed_between_the_two_names_of_its_checkpoint_leaves_no_third(
    data: TrajectoryDataModule, straight: tuple[Path, PlanningEvaluation], tmp_path: Path
) -> None:
    """Renaming one of two names of a file to the other does nothing."""
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    shutil.copy(straight[0] / "2.ckpt", last)
    previous.hardlink_to(last)
    train(data, LastCheckpoint(last, 10 * STEPS, resumed_from=last), checkpoint=last)
    assert {path.name: read_checkpoint(path)["global_step"] for path in tmp_path.iterdir()} == {
        "last.ckpt": STEPS,
        "previous.ckpt": 2,
    }


def test_the_best_of_another_metric_is_told_from_what_was_evaluated() -> None:
    planning = evaluation()
    planning.metric = "normalized_score_mean"
    means = ((1800.0, 55.0), (1900.0, 58.0), (900.0, 28.0))
    planning.load_state_dict({"history": [{"return_mean": r, "normalized_score_mean": s} for r, s in means]})
    assert planning.best == 58.0
    planning.load_state_dict({"history": []})
    assert planning.best is None


def test_what_is_continued_must_have_the_same_settings(tmp_path: Path) -> None:
    folder = run(tmp_path, "run")
    assert checkpoint_to_resume(config(), folder) is None
    (folder / "last.ckpt").touch()
    free = config(runtime={"threads": "2"}, logger={"name": "csv"})
    assert checkpoint_to_resume(free, folder) == folder / "last.ckpt"
    with pytest.raises(UserError, match=r"^trainer\.max_steps must be as in the run of .*=9 there, 10 here$"):
        checkpoint_to_resume(config(trainer={"max_steps": 10}), folder)
    with pytest.raises(UserError, match=r"^trainer\.more must be as in .*=None there, 2 here$"):
        checkpoint_to_resume(config(trainer=CONFIG["trainer"] | {"more": 2}), folder)
    with pytest.raises(UserError, match=r"^resume must be true to continue the run in .*, got False$"):
        checkpoint_to_resume(config(resume=False), folder)
    with pytest.raises(UserError, match=r"^checkpoint must be in the folder of its run"):
        checkpoint_to_resume(config(checkpoint=str(folder / "last.ckpt")), tmp_path)
    with pytest.raises(UserError, match=r"^checkpoint must be the path of a checkpoint file"):
        checkpoint_to_resume(config(checkpoint=str(folder / "none.ckpt")), folder)


def test_a_run_that_was_cut_short_is_not_finished(tmp_path: Path) -> None:
    assert finished_results(run(tmp_path, "1")) is None
    assert finished_results(run(tmp_path, "2", results={"interrupted": True})) is None
    assert finished_results(run(tmp_path, "3", results={"return_mean": 1.0})) == {"return_mean": 1.0}


def test_the_real_config_equals_itself_when_read_back(tmp_path: Path) -> None:
    composed = compose_config("train", "experiment=laptop", "resume=true")
    OmegaConf.save(composed, tmp_path / "config.yaml", resolve=True)
    assert checkpoint_to_resume(composed, tmp_path) is None
    other = compose_config("train", "experiment=laptop", "resume=true", "model.n_head=2")
    with pytest.raises(UserError, match=r"^model\.n_head must be as in"):
        checkpoint_to_resume(other, tmp_path)
