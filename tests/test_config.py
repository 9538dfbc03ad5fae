"""`trajectory/config.py`: checked settings, and errors in one line that leave nothing behind."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from trajectory.baselines.settings import BCSettings
from trajectory.commands.errors import exit_on_user_error
from trajectory.config import settings as make_settings
from trajectory.config import without_missing
from trajectory.critic.settings import IQLCriticSettings
from trajectory.data.settings import DataSettings, TokenizerSettings
from trajectory.errors import UserError
from trajectory.evaluation.settings import EvaluationSettings
from trajectory.locks import run_dir_lock
from trajectory.loggers.settings import WandbSettings
from trajectory.model.settings import GPTSettings, OptimizerSettings
from trajectory.planning.settings import PlannerSettings
from trajectory.training.settings import (
    GuardSettings,
    LastCheckpointSettings,
    RuntimeSettings,
    ThreadChoiceSettings,
    TrainerSettings,
)

SECTIONS: dict[str, Any] = {
    "data": DataSettings,
    "runtime": RuntimeSettings,
    "trainer": TrainerSettings,
    "callbacks.guard": GuardSettings,
    "callbacks.last_checkpoint": LastCheckpointSettings,
    "callbacks.threads": ThreadChoiceSettings,
    "evaluation": EvaluationSettings,
    "planner": PlannerSettings,
    "model": GPTSettings,
    "model.optimizer": OptimizerSettings,
    "tokenizer": TokenizerSettings,
    "logger.wandb": WandbSettings,
    "baseline": BCSettings,
    "critic": IQLCriticSettings,
}
KINDS = ("observation", "action", "reward")
KEYS = [(section, field.name) for section, cls in SECTIONS.items() for field in fields(cls) if field.name not in KINDS]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.floats(-2, 2), max_size=3),
)


def refusal(section: str, key: str, value: Any) -> str | None:
    """What is said about a value, None where it is taken."""
    try:
        make_settings(SECTIONS[section], {key: value}, section)
    except UserError as error:
        return str(error)
    return None


@settings(max_examples=10, deadline=None)
@given(value=SCALARS)
@example(value="²")  # a digit that int() does not read
@example(value="${nosuch}")
@example(value="1\n2")
def test_any_value_of_any_key_is_taken_or_refused_by_name(value: Any) -> None:
    for section, key in KEYS:
        message = refusal(section, key, value)
        assert message is None or (message.startswith(section) and key in message)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        *(
            ("trainer", key, 0)
            for key in ("max_steps", "accumulate_grad_batches", "log_every_n_steps", "gradient_clip_val", "max_epochs")
        ),
        ("data", "batch_size", 0),
        *(("data", "validation_share", value) for value in (-0.1, 1.0)),
        ("callbacks.last_checkpoint", "every_n_steps", 0),
        ("callbacks.threads", "every_n_steps", 0),
        ("trainer", "accelerator", "tpu"),
        ("trainer", "precision", "int8"),
        *(("runtime", "threads", value) for value in ("all", 0, -1, "1.5")),
        *(("evaluation", key, 0) for key in ("episodes", "periodic_episodes", "max_steps", "every_n_steps")),
        *(("evaluation", key, -1) for key in ("seed", "periodic_seed")),
        *(("planner", key, 0) for key in ("beam_width", "horizon", "expansion", "replan_interval", "discount")),
        ("planner", "context", -1),
        ("planner", "discount", 1.01),
        ("planner", "replan_interval", 16),
        *(("model", key, 0) for key in ("n_layer", "n_head", "n_embd", "window", "bins")),
        ("model", "n_embd", 130),
        ("model", "attention_dropout", 1.0),
        ("model.optimizer", "learning_rate", 0.0),
        ("model.optimizer", "decay_fraction", 1.1),
        ("model.optimizer", "betas", [0.9, 1.5]),
        ("model.optimizer", "weight_decay", -0.1),
        ("tokenizer", "discount", 1.0),
        ("tokenizer", "bins", 1),
        ("tokenizer", "binning", "nosuch"),
        ("logger.wandb", "mode", "nosuch"),
        ("baseline", "name", "nosuch"),
        ("baseline", "steps", 0),
        ("baseline", "batch_size", 0),
        # absurd, or beyond what a number reaches
        *(("model.optimizer", f"{kind}_weight", -1.0) for kind in ("action", "reward", "value")),
        *(("model.optimizer", "final_ratio", value) for value in (-1.0, 0.0, 10.0)),
        ("model.optimizer", "learning_rate", 1e-300),
        ("model.optimizer", "learning_rate", float("inf")),
        ("model", "init_smoothness", 1e300),
        ("model", "n_layer", 2**63),
        ("callbacks.guard", "skip", 7),
        ("evaluation", "video", -1),
        ("runtime", "threads", 10**11),
        *(("evaluation", key, 2**32) for key in ("seed", "periodic_seed")),
        ("trainer", "max_steps", 2**64),
        *(("planner", key, 2**64) for key in ("beam_width", "expansion", "context")),
        ("planner", "deadline_ms", 1e-9),
        *(("planner", "execute_temperature", value) for value in (1e-300, 1e30)),
        ("tokenizer", "terminal_reward", float("-inf")),
        ("tokenizer", "terminal_reward", float("nan")),
    ],
)
def test_value_out_of_range_is_refused_with_key_rule_and_value(section: str, key: str, value: Any) -> None:
    message = refusal(section, key, value)
    assert message is not None
    assert f"{section}.{key}" in message or (section in message and key in message)
    assert "must be " in message
    assert str(value) in message
    assert "\n" not in message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("top_k", 0),
        *(("top_p", value) for value in (0.0, 1.5, float("nan"), 1e-300)),
        *(("temperature", value) for value in (0.0, 1e-300, 1e300)),
    ],
)
def test_sampling_out_of_range_is_refused_with_its_whole_key(kind: str, key: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"planner\.{kind}\.{key} must be .*, got {re.escape(str(value))}"):
        make_settings(PlannerSettings, {kind: {key: value}}, "planner")


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"beam_width": "abc"}, r"planner\.beam_width"),
        ({"horizon": 1.5}, r"planner\.horizon"),
        ({"horizon": None}, r"planner\.horizon"),
        ({"action": {"top_p": "most"}}, r"planner\.action\.top_p"),
        ({"nosuch": 1}, r"planner\.nosuch"),
        ({"action": {"nosuch": 1}}, r"planner\.action\.nosuch"),
    ],
)
def test_wrong_type_or_unknown_key_is_refused_with_its_whole_key(values: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=rf"^{key}: [^\n]+$"):
        make_settings(PlannerSettings, values, "planner")


def test_settings_come_from_a_config_with_defaults_for_what_it_leaves_out() -> None:
    config = OmegaConf.create({"beam_width": 7, "action": {"top_p": 0.9}})
    planner = make_settings(PlannerSettings, config, "planner")
    assert isinstance(planner, PlannerSettings)
    assert (planner.beam_width, planner.horizon, planner.action.top_p, planner.observation.top_k) == (7, 15, 0.9, 1)
    assert make_settings(RuntimeSettings, {"threads": 3}, "runtime").threads == "3"


def test_given_leaves_out_what_is_missing_and_resolves_the_rest() -> None:
    config = OmegaConf.create(
        {"a": "???", "b": {"c": "???", "d": 2, "e": "${f}"}, "f": [1, 2], "g": None, "h": {"i": "???"}}
    )
    values = without_missing(config)
    assert values == {"b": {"d": 2, "e": [1, 2]}, "f": [1, 2], "g": None, "h": {}}
    assert type(values["b"]) is dict
    assert type(values["f"]) is list


def test_seeds_are_one_per_episode_and_those_of_training_apart_from_the_final_ones() -> None:
    evaluation = EvaluationSettings(episodes=3, seed=10, periodic_episodes=2, periodic_seed=4)
    assert list(evaluation.seeds) == [10, 11, 12]
    assert list(evaluation.periodic_seeds) == [4, 5]
    assert not set(EvaluationSettings().seeds) & set(EvaluationSettings().periodic_seeds)


def half_a_run(folder: Path, error: Exception) -> NoReturn:
    """Write some of what a run writes, then fail."""
    (folder / "config.yaml").write_text("seed: 0")
    raise error


def fail(folder: Path, error: Exception, *, debug: bool = False) -> int:
    """The exit code of a run that fails in a folder which Hydra has begun to fill."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / "train.log").touch()
    with pytest.raises(SystemExit) as leave, exit_on_user_error(folder, debug=debug, lock=run_dir_lock(folder)):
        half_a_run(folder, error)
    return int(leave.value.code or 0)


def test_user_error_is_one_line_and_removes_the_runs_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert fail(tmp_path / "run", UserError("key must be small, got 9\nand more")) == 1
    assert capsys.readouterr().err == "error: key must be small, got 9\n"
    assert list(tmp_path.iterdir()) == []


def test_missing_mandatory_value_is_one_line_that_names_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = OmegaConf.create({"checkpoint": "???"})
    with pytest.raises(SystemExit), exit_on_user_error(tmp_path, debug=False, lock=run_dir_lock(tmp_path)):
        print(config.checkpoint)
    assert capsys.readouterr().err == "error: Missing mandatory value: checkpoint\n"


def test_folder_with_a_checkpoint_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"hours of training")
    assert fail(tmp_path, UserError("late")) == 1
    assert (tmp_path / "last.ckpt").read_bytes() == b"hours of training"


def test_what_was_in_the_folder_before_the_run_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """As with `hydra.run.dir=.`, or a folder in which a run has finished before."""
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "results.json").write_text("{}")
    assert fail(tmp_path, UserError("planner.horizon must be a whole number of at least 1, got 0")) == 1
    assert (tmp_path / "notes.txt").is_file()
    assert (tmp_path / "earlier" / "results.json").is_file()


def test_what_another_process_wrote_while_this_one_waited_for_its_lock_is_kept(tmp_path: Path) -> None:
    """It had the lock, and has come to its end by the time that this one has it."""

    @contextmanager
    def lock() -> Generator[None]:
        (tmp_path / "results.json").write_text("{}")
        yield

    with pytest.raises(SystemExit), exit_on_user_error(tmp_path, debug=False, lock=lock()):
        half_a_run(tmp_path, UserError("to must be a folder that is new"))
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_debug_shows_the_traceback_before_the_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert fail(tmp_path, UserError("key must be small, got 9"), debug=True) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "error: key must be small, got 9"


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: bytearray(1 << 60),
        lambda: np.empty(1 << 59),
        lambda: np.empty(1 << 60),
        lambda: torch.empty(1 << 60),
        lambda: torch.empty(1 << 62, 9),
    ],
    ids=["python", "numpy", "numpy, beyond 64 bits", "torch", "torch, beyond 64 bits"],
)
def test_memory_that_is_not_there_is_one_line(
    allocate: Callable[[], object], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as leave, exit_on_user_error(tmp_path, debug=False, lock=run_dir_lock(tmp_path)):
        allocate()
    assert leave.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: there is not enough memory for this: ")


def test_a_fault_of_the_program_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exit_on_user_error(tmp_path, debug=False, lock=run_dir_lock(tmp_path)):
        half_a_run(tmp_path, ZeroDivisionError())
    assert (tmp_path / "config.yaml").is_file()


def test_a_run_without_error_leaves_its_folder_and_goes_on(tmp_path: Path) -> None:
    with exit_on_user_error(tmp_path, debug=False, lock=run_dir_lock(tmp_path)):
        (tmp_path / "results.json").write_text("{}")
    assert (tmp_path / "results.json").is_file()
