"""Composition as Hydra's and Lightning's users know it: every flag of the Trainer, callbacks and loggers of their own,
a validation loss; and in one line what contradicts this project or what nothing reads.
"""

from __future__ import annotations

import csv
import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

from helpers.command_line import CONF, LAPTOP, ROOT, TINY, Refusal, compose_config, run_main_here
from helpers.toy_world import StopAfter, fit, toy_data, toy_module
from trajectory.data.datamodule import TrajectoryDataModule
from trajectory.data.episodes import held_out_episodes, rows_of
from trajectory.data.settings import TokenizerSettings
from trajectory.data.tokenization import load_or_tokenize
from trajectory.data.windows import ValidationBatches
from trajectory.errors import UserError
from trajectory.interruption import Interruption
from trajectory.model.callbacks.last_checkpoint import LastCheckpoint
from trajectory.model.callbacks.progress import TrainingProgress, estimate
from trajectory.model.checkpoint import read_checkpoint
from trajectory.model.settings import GPTSettings
from trajectory.model.throughput import Throughput
from trajectory.planning.settings import PlannerSettings
from trajectory.renamed import CHECKPOINT_COMMAND_KEYS, RENAMED_KEYS, rename_config, rename_overrides
from trajectory.resume import comparable_settings, differences
from trajectory.settings import training_settings
from trajectory.training.settings import CALLBACKS

QUICK = (
    *TINY,
    *("logger=csv", "evaluation.video=false", "evaluation.every_n_steps=null", "dataset.quality=random"),
    "hydra.run.dir=run",
)
FROM_THE_RUN = {"logger", "callbacks", "plugins", "default_root_dir", "barebones"}
EARLIER = ROOT / "tests" / "release_0_0"  # a run's `config.yaml` and `last.ckpt`, written before this was composed so
STOPPING = (
    "+callbacks.early_stopping._target_=pytorch_lightning.callbacks.EarlyStopping",
    "+callbacks.early_stopping.monitor=val/loss",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose dataset is recorded once."""
    return tmp_path_factory.mktemp("place")


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def train(place: Path, name: str, *overrides: str) -> Path:
    """A run that comes to its end, in a folder of its own."""
    process = run_main_here("train", *QUICK, f"hydra.run.dir={name}", *overrides, folder=place)
    assert process.returncode == 0, process.stderr
    return place / name


def package(place: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str) -> None:
    """A package of the user's, outside this repository, that Python finds."""
    (place / "lab").mkdir(exist_ok=True)
    (place / "lab" / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(place / "lab"))


def test_the_trainer_has_every_flag_of_lightnings() -> None:
    flags = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
    composed = compose_config("train").trainer
    assert composed["_target_"] == "pytorch_lightning.Trainer"
    assert {str(key) for key in composed} - {"_target_"} == flags - FROM_THE_RUN


def test_flags_pass_through(place: Path) -> None:
    folder = train(
        place,
        "flags",
        *("trainer.accumulate_grad_batches=2", "trainer.profiler=simple", "trainer.limit_train_batches=5"),
        "callbacks.last_checkpoint.every_n_steps=1",
    )
    # five batches of an epoch are three steps of two, two and one
    epochs = {int(row["step"]): row["train/epoch"] for row in rows(folder) if "train/epoch" in row}
    assert epochs == {2: "0", 4: "1", 6: "1"}
    assert "run_training_batch" in (folder / "fit-profile.txt").read_text()
    loops = read_checkpoint(folder / "last.ckpt")["loops"]["fit_loop"]
    assert loops["epoch_loop.batch_progress"]["total"]["ready"] == 10
    assert json.loads((folder / "results.json").read_text())["steps"] == 6


class Gradients(pl.Callback):
    """Keeps those of every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        named = pl_module.named_parameters()
        self.steps.append({name: value.grad.clone() for name, value in named if value.grad is not None})


def test_a_step_of_two_batches_is_that_of_one_of_twice_the_size(tmp_path: Path) -> None:
    still: dict[str, Any] = {f"{place}_dropout": 0.0 for place in ("embedding", "residual", "attention")}
    model = GPTSettings(n_layer=1, n_head=1, n_embd=8, window=1, bins=10, **still)
    kept = []
    for batch_size, batches in ((16, 1), (8, 2)):
        data = toy_data(tmp_path / "store", TokenizerSettings(bins=10), episodes=30, window=1, batch_size=batch_size)
        torch.manual_seed(0)
        module = toy_module(data, model, PlannerSettings(beam_width=1, horizon=1, context=0))
        gradients = Gradients()
        fit(module, data, 1, accumulate_grad_batches=batches, callbacks=[gradients])
        kept.append(gradients.steps)
    (one,), (two,) = kept
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)


def test_fast_dev_run_goes_through_everything_once(place: Path) -> None:
    folder = train(place, "fast", "trainer.fast_dev_run=true", "data.validation_share=0.3")
    results = json.loads((folder / "results.json").read_text())
    assert (results["steps"], results["interrupted"]) == (1, False)
    assert results["validation"]["val/loss"] > 0


def test_max_time_ends_cleanly_and_evaluates(place: Path) -> None:
    folder = train(place, "timed", "trainer.max_time=00:00:00:01", "trainer.max_steps=1000000")
    results = json.loads((folder / "results.json").read_text())
    assert 0 < results["steps"] < 1_000_000
    assert results["interrupted"] is False
    assert len(results["episodes"]) == 2
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == results["steps"]
    again = run_main_here(
        "train", *QUICK, "hydra.run.dir=timed", "trainer.max_time=00:00:00:01", "trainer.max_steps=1000000",
        "resume=true", folder=place,
    )  # fmt: skip
    assert "is finished" in again.stdout


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["trainer.max_epochs=3"],
            "trainer.max_epochs must be -1: trainer.max_steps says how long a training is, got 3",
        ),
        (
            ["trainer.enable_checkpointing=true"],
            "trainer.enable_checkpointing must be false: callbacks.last_checkpoint writes the checkpoints, got True",
        ),
        (["trainer.overfit_batches=2"], "trainer.overfit_batches must be 0.0: trainer.limit_train_batches says"),
        (["+trainer.callbacks=[]"], "trainer.callbacks: Key 'callbacks' not in 'TrainerSettings'"),
        (
            ["trainer._target_=lab.Trainer"],
            "trainer._target_ must be pytorch_lightning.Trainer: what you add to a training is a callback, got 'lab.",
        ),
        (["trainer.profiler=quick"], "trainer must have flags that Lightning takes: When passing string value for the"),
        (["trainer.profiler=[a,null]"], "trainer.profiler must be null or a name, such as simple, got ["),
        (["trainer.max_time=soon"], "trainer must have flags that Lightning takes: `Timer(duration='soon')` is not"),
        (["trainer.limit_train_batches=-1"], "trainer must have flags that Lightning takes: You have passed invalid"),
        (["+nosuch=1"], "nosuch must be left out: nothing reads it here, got 'a key that was added'"),
        (["+callback.mine._target_=lab.Mine"], "callback must be left out: nothing reads it here"),
        (["+planner.beem=1"], "planner.beem: Key 'beem' not in 'PlannerSettings'"),
        (["+data.beem=1"], "data.beem: Key 'beem' not in 'DataSettings'"),
        (["+callbacks.guard.beem=1"], "callbacks.guard.beem: Key 'beem' not in 'GuardSettings'"),
        (["callbacks.guard=null"], "callbacks must be with guard, planning, last_checkpoint, got 'none at guard'"),
        (["+callbacks.mine.x=1"], "callbacks.mine._target_ must be given, got None"),
        (
            ["+callbacks.mine._target_=nosuch_lab.Mine"],
            "callbacks.mine._target_ must be the dotted path of a class or function that can be imported, got "
            "'nosuch_lab.Mine' (ModuleNotFoundError",
        ),
        (["+callbacks.mine._target_=mine"], "callbacks.mine._target_ must be the dotted path of a class or function,"),
        (
            ["+callbacks.mine._target_=pathlib.Path"],
            "callbacks.mine._target_ must be that of a Callback, got 'pathlib.Path, which makes a PosixPath'",
        ),
        (
            ["+callbacks.mine._target_=trajectory.model.callbacks.finite_gradients.FiniteGradients"],
            "callbacks.mine._target_ must be a class of your own, or at its own name, got 'trajectory.",
        ),
        (
            ["+callbacks.early._target_=pytorch_lightning.callbacks.EarlyStopping"],
            "callbacks.early: pytorch_lightning.callbacks.EarlyStopping cannot be made of what it is given: TypeError",
        ),
        ([*STOPPING], "data.validation_share must be above 0, for example 0.05, for callbacks.early_stopping, which"),
        (
            ["evaluation.best_by=val/loss"],
            "data.validation_share must be above 0 with evaluation.best_by=val/loss, got",
        ),
        (
            ["data.validation_share=0.1", "baseline=bc"],
            "data.validation_share must be 0 with a baseline, which learns from all episodes, got 0.1",
        ),
        (
            [*STOPPING, "data.validation_share=0.2", "baseline=bc"],
            "data.validation_share must be 0 with a baseline",
        ),
        (["+logger.mine._target_=pathlib.Path"], "logger.mine must be one of Lightning's loggers, got 'pathlib.Path'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_contradicts_is_one_line(overrides: list[str], line: str, refusal: Refusal) -> None:
    assert refusal("train", *QUICK[:-1], *overrides).startswith(f"error: {line}")


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_a_share_that_leaves_no_episode_is_one_line(share: float, place: Path) -> None:
    share_of = f"data.validation_share={share}"
    process = run_main_here("train", *QUICK, "hydra.run.dir=refused", share_of, folder=place)
    rule = "data.validation_share must be a share that leaves an episode for validation and one to train on, of "
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith(f"error: {rule}")
    assert not (place / "refused").exists()


@pytest.mark.parametrize(
    ("command", "overrides"),
    [
        ("evaluate", ["checkpoint=x.ckpt"]),
        ("analyze", ["checkpoint=x.ckpt", "analysis=attention"]),
        ("collect", []),
        ("report", ["runs=x"]),
        ("dashboard", []),
        ("benchmark", []),
        ("train_behaviour", []),
    ],
)
def test_no_command_takes_a_key_that_nothing_reads(command: str, overrides: list[str], refusal: Refusal) -> None:
    said = refusal(command, *overrides, "+callbacks.mine._target_=lab.Mine")
    assert said == "error: callbacks must be left out: nothing reads it here, got 'a key that was added'"


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ("evaluate", "env.nosuch"),
        ("analyze", "env.nosuch"),
        ("analyze", "dataset.nosuch"),
        ("evaluate", "planner.nosuch"),
    ],
)
def test_nor_one_that_is_held_against_a_checkpoint(command: str, key: str, refusal: Refusal) -> None:
    kind = ("analysis=attention",) if command == "analyze" else ()
    said = refusal(command, f"checkpoint={EARLIER / 'last.ckpt'}", *kind, "logger=csv", f"+{key}=1")
    assert said.startswith(f"error: {key}")
    assert "nothing reads it" in said or "not in 'PlannerSettings'" in said


def test_a_users_callback_is_called_before_the_last_checkpoint_and_keeps_its_state(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
import pytorch_lightning as pl

class Count(pl.Callback):
    def __init__(self, by):
        self.by, self.count = by, 0
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.count += self.by
    def state_dict(self):
        return {"count": self.count}
    def on_train_end(self, trainer, pl_module):
        self.count += 100
"""
    package(place, monkeypatch, "counting", source)
    folder = train(place, "counted", "+callbacks.count._target_=counting.Count", "+callbacks.count.by=3")
    states = read_checkpoint(folder / "last.ckpt")["callbacks"]
    assert states["Count"] == {"count": 6 * 3 + 100}
    chosen = training_settings(compose_config("train", "+callbacks.count._target_=counting.Count")).callbacks
    assert list(chosen) == [*list(CALLBACKS)[:-1], "count", "last_checkpoint"]


def test_a_callback_that_raises_is_one_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
import pytorch_lightning as pl

class Broken(pl.Callback):
    def on_train_batch_end(self, *arguments):
        raise KeyError("gone")
"""
    package(place, monkeypatch, "breaking_callback", source)
    process = run_main_here(
        "train", *QUICK, "hydra.run.dir=broken", "+callbacks.mine._target_=breaking_callback.Broken", folder=place
    )
    assert process.returncode == 1
    assert (
        process.stderr.splitlines()[-1] == "error: callbacks.mine failed with KeyError: 'gone'; debug=true shows where"
    )


def test_early_stopping_stops_and_the_run_still_plans(place: Path) -> None:
    """Where it would not stop, the training would go on for a million steps."""
    folder = train(
        place,
        "stopped",
        *(
            "callbacks=early_stopping",
            "callbacks.early_stopping.patience=1",
            "+callbacks.early_stopping.min_delta=100.0",
        ),
        *("data.validation_share=0.3", "trainer.val_check_interval=2", "trainer.max_steps=1000000"),
        "evaluation.best_by=val/loss",
    )
    results = json.loads((folder / "results.json").read_text())
    assert (results["steps"], results["interrupted"], len(results["episodes"])) == (4, False, 2)
    losses = {int(row["step"]): float(row["val/loss"]) for row in rows(folder) if "val/loss" in row}
    assert list(losses) == [2, 4]
    assert all(f"val/loss_{kind}" in row for row in rows(folder) if "val/loss" in row
               for kind in ("observation", "action", "reward", "value"))  # fmt: skip
    best = min(losses, key=lambda step: losses[step])
    assert read_checkpoint(folder / "best.ckpt")["global_step"] == best


def test_lightnings_own_callbacks_work_beside_ours(place: Path) -> None:
    """A `ModelCheckpoint` keeps its files in the run's folder, and what the others log is in `metrics.csv`."""
    folder = train(
        place,
        "beside",
        *("data.validation_share=0.3", "trainer.val_check_interval=3"),
        *("+callbacks.top._target_=pytorch_lightning.callbacks.ModelCheckpoint", "+callbacks.top.monitor=val/loss"),
        "+callbacks.rate._target_=pytorch_lightning.callbacks.LearningRateMonitor",
    )
    (kept,) = (folder / "checkpoints").glob("*.ckpt")
    losses = {int(row["step"]): float(row["val/loss"]) for row in rows(folder) if "val/loss" in row}
    assert read_checkpoint(kept)["global_step"] == min(losses, key=lambda step: losses[step])
    assert any(name.startswith("lr-") for row in rows(folder) for name in row)


def test_several_loggers_at_once_and_one_of_lightnings(place: Path) -> None:
    pytest.importorskip("tensorboard")
    folder = train(
        place,
        "logged",
        "logger=[csv,tensorboard]",
        *("+logger.mine._target_=pytorch_lightning.loggers.CSVLogger", "+logger.mine.save_dir=logged"),
        *("+logger.mine.name=mine", "+logger.mine.version=one"),
    )
    assert list((folder / "tensorboard").glob("events.*"))
    with (folder / "mine" / "one" / "metrics.csv").open() as file:
        theirs = [row for row in csv.DictReader(file) if row.get("train/loss")]
    ours = [row for row in rows(folder) if "train/loss" in row]
    assert [float(row["train/loss"]) for row in theirs] == [float(row["train/loss"]) for row in ours]
    assert len(ours) == 3


def validated(tmp_path: Path, share: float, seed: int = 0) -> TrajectoryDataModule:
    data = toy_data(tmp_path / "store", TokenizerSettings(bins=10), episodes=30, window=3, batch_size=16)
    held = TrajectoryDataModule(data.source, data.tokenizer, window=3, batch_size=16, seed=seed, validation_share=share)
    held.setup()
    return held


def test_whole_episodes_are_held_out_and_none_is_in_both(tmp_path: Path) -> None:
    whole, data = validated(tmp_path, 0.0), validated(tmp_path, 0.2)
    held_out = held_out_episodes(30, 0.2, 0)
    assert len(held_out) == 6
    assert sorted([*held_out, *data.episodes]) == list(range(30))
    assert whole.windows is not None
    assert data.windows is not None
    assert data.validation is not None
    tokens = load_or_tokenize(data.source, data.tokenizer, validation_share=0.2).tokens
    ends = whole.windows.ends.tolist()
    starts = [0, *ends[:-1]]
    for windows, episodes in ((data.windows, data.episodes), (data.validation, held_out)):
        expected = torch.cat([tokens[starts[one] : ends[one]] for one in episodes])
        assert torch.equal(windows.first_of(torch.arange(len(windows))), expected)
        assert windows.tokens.data_ptr() == data.windows.tokens.data_ptr(), "both have the same tokens"
        assert torch.equal(windows.terminated, whole.windows.terminated[torch.as_tensor(episodes)])
    assert held_out_episodes(30, 0.2, 0).tolist() == held_out.tolist()
    assert held_out_episodes(30, 0.2, 1).tolist() != held_out.tolist()
    with pytest.raises(UserError, match=r"data\.validation_share must be a share that leaves an episode for"):
        validated(tmp_path, 0.01)


def test_bins_and_critic_see_no_episode_that_is_held_out(tmp_path: Path) -> None:
    """Whatever those hold: here numbers that no other episode has."""
    data = validated(tmp_path, 0.2)
    everything, held_out = data.source.load(), held_out_episodes(30, 0.2, 0)
    rows = rows_of(everything.ends, held_out)[0]
    changed = replace(everything, observations=everything.observations + 100 * rows[:, None].astype(np.float32))
    source = replace(data.source, read=lambda **_: changed, id="changed")
    other = TrajectoryDataModule(source, data.tokenizer, window=3, batch_size=16, seed=0, validation_share=0.2)
    other.setup()
    for name, bins in data.discretizer.state_dict().items():
        assert torch.equal(bins, other.discretizer.state_dict()[name]), name
    whole = validated(tmp_path, 0.0)
    assert not torch.equal(whole.discretizer.boundaries, data.discretizer.boundaries)
    assert np.array_equal(whole.training_episodes().observations, everything.observations)
    trained_on = other.training_episodes()
    assert np.array_equal(trained_on.observations, everything.observations[~rows])
    assert np.array_equal(trained_on.rewards, everything.rewards[~rows])
    assert trained_on.lengths.tolist() == everything.lengths[data.episodes].tolist()
    assert trained_on.terminated.tolist() == everything.terminated[data.episodes].tolist()


def test_the_validation_loss_is_the_mean_over_all_tokens_held_out(tmp_path: Path) -> None:
    data = validated(tmp_path, 0.3)
    model = GPTSettings(n_layer=1, n_head=1, n_embd=8, window=3, bins=10)
    module = toy_module(data, model, PlannerSettings(beam_width=1, horizon=1, context=1))
    trainer = fit(module, data, 4, val_check_interval=2, num_sanity_val_steps=0)
    assert data.validation is not None
    tokens, mask = data.validation[torch.arange(len(data.validation))]
    module.eval()
    with torch.no_grad():
        logits = module.gpt(tokens.flatten(1).long()[:, :-1])
    targets = tokens.flatten(1).long()[:, 1:]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    D = tokens.shape[2]
    counted = mask.repeat_interleave(D, dim=1)[:, 1:]
    weights = module.loss_weights.repeat(3)[1:]
    expected = float((losses.view_as(targets) * counted * weights).sum() / counted.sum())
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(expected, rel=1e-5)


def test_a_limited_validation_is_a_sample_of_all_held_out_windows(tmp_path: Path) -> None:
    """`trainer.limit_val_batches` takes the first batches, which are the same in every validation."""
    data = validated(tmp_path, 0.3)
    assert data.validation is not None
    batches, again = (list(ValidationBatches(len(data.validation), 16, seed=0)) for _ in range(2))
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(len(data.validation)))
    assert all(torch.equal(left, right) for left, right in zip(batches, again, strict=True))
    assert len(data.validation.episodes_of(batches[0]).unique()) >= 6  # of nine
    laptop = compose_config("train", "experiment=laptop")
    assert laptop.trainer.limit_val_batches * laptop.data.batch_size == 640


def test_validating_changes_nothing_in_the_training(tmp_path: Path) -> None:
    """The weights of a training that validates after each step are those of one that never does."""
    ends = []
    for limit in (0, 1.0):
        data = validated(tmp_path, 0.3)
        torch.manual_seed(0)
        model = GPTSettings(n_layer=1, n_head=1, n_embd=8, window=3, bins=10)
        module = toy_module(data, model, PlannerSettings(beam_width=1, horizon=1, context=1))
        trainer = fit(module, data, 5, val_check_interval=1, limit_val_batches=limit, num_sanity_val_steps=0)
        ends.append((trainer.lightning_module.state_dict(), torch.get_rng_state()))
    (left, left_state), (right, right_state) = ends
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert torch.equal(left_state, right_state)


def test_old_names_are_taken_with_a_hint(place: Path) -> None:
    old = ("trainer.batch_size=16", "trainer.checkpoint_every_n_steps=3", "trainer.strategy=single")
    process = run_main_here("train", *QUICK, "hydra.run.dir=old", *old, "trainer.max_steps=1", folder=place)
    assert process.returncode == 0, process.stderr
    hints = [line for line in process.stderr.splitlines() if line.startswith("warning: trainer.")]
    assert hints == [
        "warning: trainer.batch_size is now data.batch_size; the old name is accepted until the next release",
        "warning: trainer.checkpoint_every_n_steps is now callbacks.last_checkpoint.every_n_steps; the old name is "
        "accepted until the next release",
        "warning: trainer.strategy=single is now trainer.strategy=auto; the old name is accepted until the next "
        "release",
    ]
    config = OmegaConf.load(place / "old" / "config.yaml")
    assert (config.data.batch_size, config.callbacks.last_checkpoint.every_n_steps) == (16, 3)
    assert "batch_size" not in config.trainer


def test_every_new_name_is_a_key_of_the_config(capsys: pytest.CaptureFixture) -> None:
    evaluate_config = compose_config("evaluate")
    baselines = [compose_config("train", f"baseline={name}") for name in ("rebrac", "iql")]
    configs = [compose_config("train", "critic=iql"), *baselines]
    for new in RENAMED_KEYS.values():
        section, _, name = new.rpartition(".")
        assert any(name in (OmegaConf.select(config, section) or ()) for config in configs), new
    assert "accelerator" in evaluate_config.runtime
    assert rename_overrides(["~trainer.threads", "++trainer.threads=2", "planner=imitation", "-m"], "train") == [
        "~runtime.threads",
        "++runtime.threads=2",
        "planner=imitation",
        "-m",
    ]
    assert rename_overrides(["baseline=none,cloning,cloning_best", "baseline=choice(cloning, dt)"], "train") == [
        "baseline=none,bc,percent_bc",
        "baseline=choice(bc, dt)",
    ]
    assert rename_overrides(["+experiment=[cloning_tokens,laptop]", "baseline.name=cloning"], "train") == [
        "+experiment=[bc_tokens,laptop]",
        "baseline.name=bc",
    ]
    assert rename_overrides(["trainer.accelerator=cpu"], "evaluate") == ["runtime.accelerator=cpu"]
    assert rename_overrides(["trainer.accelerator=cpu"], "train") == ["trainer.accelerator=cpu"]
    assert set(RENAMED_KEYS) < set(CHECKPOINT_COMMAND_KEYS)


def test_an_old_experiment_file_is_taken_and_the_command_line_wins(capsys: pytest.CaptureFixture) -> None:
    config = compose_config("train", "data.batch_size=8")
    OmegaConf.update(config, "trainer.batch_size", 4, force_add=True)
    OmegaConf.update(config, "trainer.threads", 2, force_add=True)
    config.trainer.strategy = "single"
    rename_config(config, "train", ["data.batch_size=8"])
    assert (config.data.batch_size, config.runtime.threads, config.trainer.strategy) == (8, 2, "auto")
    assert "batch_size" not in config.trainer
    assert capsys.readouterr().err.count("is now") == 3
    training_settings(config)


def test_a_run_of_an_earlier_release_can_be_gone_on_with(tmp_path: Path) -> None:
    """Its `config.yaml` has the old keys, and none of those that came since."""
    made = (
        *(*LAPTOP, "dataset.steps=1000", "model.n_layer=1", "model.n_embd=8", "model.n_head=1"),
        *("tokenizer.bins=10", "model.window=3", "planner.context=1", "model.optimizer.ema_decay=null"),
        "model.optimizer.muon_learning_rate=null",
        *("trainer.max_steps=3", "planner.beam_width=2", "planner.horizon=2", "evaluation.episodes=1"),
        *(
            "evaluation.max_steps=5",
            "evaluation.every_n_steps=null",
            "evaluation.video=false",
            "planner.execute_temperature=0.5",
        ),
    )
    assert differences(EARLIER, compose_config("train", *made)) == []
    other = ("data.batch_size=64", "trainer.accumulate_grad_batches=2", "callbacks.guard.skip=true")
    assert differences(EARLIER, compose_config("train", *made, *other)) == [
        "callbacks.guard.skip=False there, True here",
        "data.batch_size=32 there, 64 here",
        "trainer.accumulate_grad_batches=None there, 2 here",
    ]
    assert comparable_settings(OmegaConf.load(EARLIER / "config.yaml"))["trainer.strategy"] == "auto"


def test_a_checkpoint_of_an_earlier_release_is_planned_with(tmp_path: Path) -> None:
    checkpoint = f"checkpoint={EARLIER / 'last.ckpt'}"
    few = ("evaluation.episodes=2", "evaluation.max_steps=5", "evaluation.video=false", "logger=csv")
    process = run_main_here("evaluate", checkpoint, *few, "hydra.run.dir=run", "runtime.threads=1", folder=tmp_path)
    assert process.returncode == 0, process.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["steps"], results["planner"]["beam_width"], results["planner"]["horizon"]) == (3, 2, 2)
    assert [episode["length"] for episode in results["episodes"]] == [5, 5]


def test_what_a_training_will_take_is_told_after_twenty_steps(place: Path) -> None:
    process = run_main_here("train", *QUICK, "hydra.run.dir=long", "trainer.max_steps=25", folder=place)
    lines = [line for line in process.stdout.splitlines() if "training steps will take about" in line]
    assert len(lines) == 1
    assert "25 training steps will take about" in lines[0]


def test_beyond_two_hours_on_a_cpu_the_short_way_is_named() -> None:
    assert estimate(4.0, 195_312, "cpu") == (
        "195,312 training steps will take about 9 days here (4 s each); experiment=laptop takes minutes, and "
        "trainer.max_time=00:02:00:00 ends this one after two hours"
    )
    assert estimate(4.0, 195_312, "cuda") == "195,312 training steps will take about 9 days here (4 s each)"
    assert estimate(0.05, 16_000, "cpu") == "16,000 training steps will take about 13 minutes here (0.05 s each)"
    assert TrainingProgress(5).seconds == []


def test_more_than_the_device_can_is_measured_anew_and_never_shown() -> None:
    measured = iter([100.0, 400.0, 50.0])
    throughput = Throughput(2.0, lambda: next(measured), 1)
    assert throughput.utilisation(25.0) == 50.0
    assert throughput.utilisation(100.0) == 50.0  # 200 of 100: it was slowed down when it was measured
    assert throughput.utilisation(300.0) == 100.0  # and what is reached is there
    assert list(measured) == []


def test_the_order_of_callbacks_in_conf_is_that_in_which_they_are_called() -> None:
    written: Any = OmegaConf.to_container(OmegaConf.load(CONF / "callbacks" / "default.yaml"))
    assert [(name, values["_target_"]) for name, values in written.items()] == [
        (name, target) for name, (target, _) in CALLBACKS.items()
    ]


@pytest.mark.parametrize("batch", [1, 4, 7])
def test_a_training_that_validates_and_takes_two_batches_a_step_goes_on_bit_for_bit(tmp_path: Path, batch: int) -> None:
    """Wherever it is ended: at the first batch of a step (1, 7), which is finished first, or at the second."""
    model = GPTSettings(n_layer=1, n_head=1, n_embd=8, window=3, bins=10)

    def train(name: str, stop_after: int | None = None, checkpoint: Path | None = None) -> dict[str, Any]:
        torch.manual_seed(0 if checkpoint is None else 1)
        data, interruption = validated(tmp_path, 0.3), Interruption()
        module = toy_module(data, model, PlannerSettings(beam_width=1, horizon=1, context=1))
        callbacks: list[pl.Callback] = [] if stop_after is None else [StopAfter(interruption, stop_after)]
        callbacks.append(LastCheckpoint(tmp_path / name, 100, interruption))
        options: dict[str, Any] = {"accumulate_grad_batches": 2, "val_check_interval": 1, "num_sanity_val_steps": 0}
        trainer = fit(module, data, 6, checkpoint, callbacks=callbacks, **options)
        assert trainer.global_step == (6 if stop_after is None else (stop_after + 1) // 2)
        return read_checkpoint(tmp_path / name)

    straight = train("straight.ckpt")
    train("part.ckpt", batch)
    continued = train("continued.ckpt", checkpoint=tmp_path / "part.ckpt")
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        left, right = torch_leaves(straight[key]), torch_leaves(continued[key])
        assert len(left) == len(right) > 0
        assert all(torch.equal(*pair) for pair in zip(left, right, strict=True)), key
    assert torch.equal(straight["process"]["generators"][0]["torch"], continued["process"]["generators"][0]["torch"])


def torch_leaves(values: Any) -> list[torch.Tensor]:
    """All numbers of nested containers, as tensors."""
    if isinstance(values, dict | list | tuple):
        below = values.values() if isinstance(values, dict) else values
        return [leaf for value in below for leaf in torch_leaves(value)]
    if isinstance(values, torch.Tensor):
        return [values]
    return [torch.tensor(values)] if isinstance(values, int | float) else []
