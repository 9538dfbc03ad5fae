"""What users extend from outside: a package of their own, named by `_target_`, without an edit in this repository; and
that a checkpoint never chooses code.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from helpers.command_line import ROOT, SHORT, run_main_here
from trajectory.errors import UserError
from trajectory.model.checkpoint import read_checkpoint, write_checkpoint
from trajectory.planning.agent import TrajectoryAgent

EXAMPLES = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL | re.MULTILINE)
# what the documentation shows, and a line that tells when it is imported
LAB = "\n\n".join(['print("the lab is imported")', *EXAMPLES])
EARLIER = ROOT / "tests" / "release_0_0"
CONFIGS = {
    "env/walk": {
        "env": {
            "_target_": "gymnasium.make",
            "name": "walk",
            "id": "lab:Walk-v0",
            "kwargs": {},
            "wrappers": [{"_target_": "lab.Doubled", "by": 2.0}],
            "observation_keys": None,
            "goal": None,
            "reference": None,
        }
    },
    "dataset/walks": {"_target_": "lab.walks", "episodes": 40},
    "tokenizer/coarse": {"_target_": "lab.Coarse", "most": 5, "bins": 100, "discount": 0.99, "terminal_reward": -100.0},
    "planner/always": {"_target_": "lab.Always", "move": 0.5},
    "baseline/mean": {"_target_": "lab.train_mean", "plus": 0.25},
}
QUICK = (
    "--config-dir=conf",
    *(one for one in SHORT if not one.startswith("dataset.")),
    *("env=walk", "dataset=walks", "logger=csv", "evaluation.video=false"),
    *("data.batch_size=32", "model.n_head=1", "planner.context=1"),
)
GIVEN = ("env.id=lab:Walk-v0", "env.wrappers=[{_target_:lab.Doubled,by:2.0}]")
QUICK_EVALUATION = (
    *("logger=csv", "evaluation.video=false", "evaluation.episodes=2", "evaluation.max_steps=15", "runtime.threads=1"),
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package and a config folder of the user's own."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "lab.py").write_text(LAB)
    for name, config in CONFIGS.items():
        path = folder / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        header = "# @package _global_\n" if name.startswith("env/") else ""
        path.write_text(header + OmegaConf.to_yaml(OmegaConf.create(config)))
    return folder


def run(lab: Path, main: str, *overrides: str) -> tuple[int, str, str]:
    """A command in the lab's folder, with its package on Python's path and not yet imported."""
    sys.modules.pop("lab", None)
    with mock.patch.object(sys, "path", [str(lab), *sys.path]):
        process = run_main_here(main, *overrides, folder=lab)
    return process.returncode, process.stdout, process.stderr


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def trained(lab: Path) -> Path:
    """A run with a dataset, a tokeniser, an objective, a callback, an environment and a wrapper of the user's."""
    own = (
        "tokenizer=coarse",
        "planner.objective={_target_:lab.Cautious,weight:0.5}",
        "+callbacks.count._target_=lab.Count",
        "+callbacks.count.path=count.txt",
    )
    code, _, said = run(lab, "train", *QUICK, *own, "hydra.run.dir=run")
    assert code == 0, said
    return lab / "run"


def test_random_data_are_recorded_in_the_wrapped_environment(lab: Path) -> None:
    """Under ids of their own: the same actions, every reward doubled."""
    summaries = []
    for number, wrappers in enumerate(("[]", "[{_target_:lab.Doubled,by:2.0}]")):
        random = ("dataset.quality=random", "dataset.steps=100", f"env.wrappers={wrappers}")
        code, _, said = run(lab, "collect", "--config-dir=conf", "env=walk", *random, f"hydra.run.dir=random{number}")
        assert code == 0, said
        summaries.append(json.loads((lab / f"random{number}" / "summary.json").read_text()))
    assert summaries[1]["return_mean"] == pytest.approx(2 * summaries[0]["return_mean"], rel=1e-6)
    assert len({summary["id"] for summary in summaries}) == 2


def test_a_dataset_a_tokeniser_an_objective_a_callback_and_a_wrapper(lab: Path, trained: Path) -> None:
    found = results(trained)
    assert (found["dataset"]["id"], found["dataset"]["source"], found["dataset"]["episodes"]) == (
        "lab/walks-v0",
        "lab",
        40,
    )
    assert found["environment"]["wrappers"] == [{"_target_": "lab.Doubled", "by": 2.0}]
    assert [episode["length"] for episode in found["episodes"]] == [10, 10]
    # ten actions of at most 1, each rewarded twice
    assert all(abs(episode["return"]) <= 20 for episode in found["episodes"])
    assert (lab / "count.txt").read_text() == "6"
    counts = read_checkpoint(trained / "last.ckpt")["state_dict"]["discretizer.counts"]
    assert counts.tolist() == [5, 5, 5, 5, 5]


def test_a_planner_acts_and_its_wrapper_doubles_what_it_earns(lab: Path) -> None:
    quick = tuple(one for one in QUICK if not one.startswith("planner."))
    code, _, said = run(lab, "train", *quick, "planner=always", "hydra.run.dir=planned")
    assert code == 0, said
    found = results(lab / "planned")
    assert [episode["return"] for episode in found["episodes"]] == [10.0, 10.0]
    assert found["planner"] == {"_target_": "lab.Always", "move": 0.5}


def test_a_baseline_is_trained_and_kept(lab: Path) -> None:
    code, _, said = run(lab, "train", *QUICK, "baseline=mean", "hydra.run.dir=baseline")
    assert code == 0, said
    found = results(lab / "baseline")
    assert found["baseline"] == {"name": "lab.train_mean", "plus": 0.25}
    action = torch.frombuffer(bytearray((lab / "baseline" / "policy.safetensors").read_bytes()), dtype=torch.float32)
    assert found["episodes"][0]["return"] == pytest.approx(20 * float(action[0]), rel=1e-5)


def test_a_checkpoint_never_chooses_code(lab: Path, trained: Path) -> None:
    """Neither the module of its environment, nor wrappers, objective or planner: each is asked for in one line."""
    checkpoint = f"checkpoint={trained / 'last.ckpt'}"
    chosen: list[str] = []
    for needed, more in (
        ("env.id must be given, for example env.id=lab:Walk-v0: ", GIVEN[0]),
        ("env.wrappers must be given: ", GIVEN[1]),
    ):
        code, out, said = run(lab, "evaluate", checkpoint, *QUICK_EVALUATION, OBJECTIVE, *chosen)
        assert code == 1
        assert said.splitlines()[-1].startswith(f"error: {needed}"), said
        assert "the lab is imported" not in out
        assert "lab" not in sys.modules
        chosen.append(more)
    code, out, said = run(lab, "evaluate", checkpoint, *QUICK_EVALUATION, *chosen)
    assert said.splitlines()[-1] == (
        f"error: planner.objective must be given: {checkpoint} was trained with lab.Cautious, and a checkpoint chooses "
        "no code"
    )
    assert "the lab is imported" not in out
    code, out, said = run(lab, "evaluate", checkpoint, *QUICK_EVALUATION, *chosen, OBJECTIVE, "hydra.run.dir=evaluated")
    assert code == 0, said
    assert "the lab is imported" in out
    first, second = results(trained), results(lab / "evaluated")
    assert [one["return"] for one in first["episodes"]] == [one["return"] for one in second["episodes"]]
    returning = ("planner.objective=return", *chosen, "hydra.run.dir=returning")
    assert run(lab, "evaluate", checkpoint, *QUICK_EVALUATION, *returning)[0] == 0
    acting = ("planner._target_=lab.Always", "+planner.move=0.25", *chosen, "hydra.run.dir=acting")
    assert run(lab, "evaluate", checkpoint, *QUICK_EVALUATION, *acting)[0] == 0
    assert [one["return"] for one in results(lab / "acting")["episodes"]] == [5.0, 5.0]


OBJECTIVE = "planner.objective={_target_:lab.Cautious,weight:0.5}"


def test_an_analysis_asks_too(lab: Path, trained: Path) -> None:
    overrides = ("analysis=attention", f"checkpoint={trained / 'last.ckpt'}", "logger=csv", "runtime.threads=1")
    code, out, said = run(lab, "analyze", *overrides)
    assert code == 1
    assert said.splitlines()[-1].startswith("error: env.id must be given, for example env.id=lab:Walk-v0: "), said
    assert "the lab is imported" not in out
    code, out, said = run(lab, "analyze", *overrides, *GIVEN)
    assert code == 1
    assert said.splitlines()[-1] == (
        "error: dataset must be given: the checkpoint's own comes from code of others, and a checkpoint chooses no "
        "code, got 'lab.walks'"
    )
    assert "the lab is imported" not in out


def test_names_that_a_file_puts_in_place_of_ours_are_not_imported(
    lab: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint changed by hand: its planner and its objective name a module that must not be run."""
    (lab / "evil.py").write_text("raise SystemExit('run out of a file')")
    monkeypatch.syspath_prepend(str(lab))
    content = read_checkpoint(trained / "last.ckpt")
    for planner in ({"_target_": "evil.Planner"}, {"objective": {"_target_": "evil.Objective"}}):
        content["hyper_parameters"]["planner"] = planner
        write_checkpoint(content, lab / "evil.ckpt")
        with pytest.raises(UserError, match=r"must be given: .* was trained with evil\..*, and a checkpoint"):
            TrajectoryAgent.from_checkpoint(lab / "evil.ckpt")


class Sum:
    """The objective of this project as one of the user's own."""

    def __call__(self, rewards: torch.Tensor, value: torch.Tensor, log_prob: torch.Tensor) -> torch.Tensor:
        assert rewards.shape == value.shape == log_prob.shape
        assert (log_prob <= 0).all()
        return rewards + value


def test_the_sum_of_what_an_objective_is_given_is_the_return() -> None:
    plans = []
    for objective in ("return", {"_target_": "test_extensions.Sum"}):
        agent = TrajectoryAgent.from_checkpoint(EARLIER / "last.ckpt", {"beam_width": 8, "objective": objective})
        agent.reset()
        plans.append(agent.plan(np.zeros(11, np.float32), best=8))
    for left, right in zip(*plans, strict=True):
        assert left.objective == right.objective
        assert np.array_equal(left.actions, right.actions)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["env.wrappers=[{by:2}]"], "env.wrappers[0]._target_ must be given, got None"),
        (
            ["env.wrappers=[{_target_:pathlib.Path}]"],
            "env.wrappers[0]: pathlib.Path cannot be made of what it is given: TypeError",
        ),
        (["planner.objective={_target_:lab.Nothing}"], "planner.objective._target_ must be the dotted path of a class"),
        (["tokenizer._target_=lab.Nothing"], "tokenizer._target_ must be the dotted path of a class or function that"),
        (
            ["tokenizer=coarse", "+tokenizer.nosuch=1"],
            "tokenizer: lab.Coarse cannot be made of what it is given: TypeE",
        ),
        (
            ["tokenizer=coarse", "tokenizer._target_=lab.Count", "~tokenizer.most", "+tokenizer.path=x"],
            "tokenizer._target_ must be that of a tokeniser, which can fit, got 'lab.Count'",
        ),
        (["tokenizer=coarse", "tokenizer.most=two"], "tokenizer: lab.Coarse failed with TypeError: "),
        (["tokenizer=coarse", "tokenizer.most=0"], "tokenizer must be one that gives at most 100 bins, ascending and"),
        (
            ["tokenizer.binning={_target_:lab.Coarse}"],
            "tokenizer.binning must be quantile or uniform; tokenizer._target_ names a tokeniser of your own, got {",
        ),
        (["dataset._target_=lab.nothing"], "dataset._target_ must be the dotted path of a class or function that can"),
        (["+dataset.nosuch=1"], "dataset: lab.walks cannot be made of what it is given: TypeError"),
        (["dataset._target_=lab.Coarse", "~dataset.episodes", "+dataset.most=3"], "dataset: lab.Coarse cannot be made"),
        (
            ["critic=iql", "critic._target_=lab.Critic"],
            "critic._target_ must be trajectory.critic.iql.IQLCritic or trajectory.critic.rebrac.ReBRACCritic: values "
            "of your own are a planner's (planner._target_), got 'lab.Critic'",
        ),
        (
            ["model._target_=lab.Model"],
            "model._target_ must be trajectory.model.gpt.GPT: a method of your own is a baseline (baseline._target_), "
            "got 'lab.Model'",
        ),
        (
            ["env._target_=lab.Walk"],
            "env._target_ must be gymnasium.make: env.id and env.wrappers name what is yours, got 'lab.Walk'",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_target_of_the_wrong_kind_is_one_line(lab: Path, overrides: list[str], line: str) -> None:
    code, _, said = run(lab, "train", *QUICK, "hydra.run.dir=refused", *overrides)
    assert code == 1
    assert said.splitlines()[-1].startswith(f"error: {line}"), said
    assert not (lab / "refused").exists()
