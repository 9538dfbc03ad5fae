"""How commands start: what is imported when, Ctrl-C while it is, and plugins, extras and folders that are broken.

What was imported is read from what Python itself tells (`-X importtime`), with the chain that brought it; no clock.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from helpers import command_line, holding
from helpers.command_line import ROOT, TINY
from helpers.forked import LIGHT
from helpers.holding import Hold

run_main, running = partial(command_line.run_main, fresh=True), partial(holding.running, fresh=True)
run_lightly = partial(command_line.run_main, light=True)

TELL: dict[str, Any] = {"PYTHONPROFILEIMPORTTIME": "1"}
MARK = "import time:"

# packages that take a while, or that say that something heavy is going on
HEAVY = {
    *("torch", "torch._dynamo", "pytorch_lightning", "lightning_fabric", "torchmetrics", "scipy", "numpy", "wandb"),
    *("matplotlib", "matplotlib.pyplot", "PIL", "imageio", "gymnasium", "mujoco", "minari", "h5py", "pyarrow"),
    *("pandas", "optuna", "joblib", "submitit", "tensorboard", "safetensors", "stable_baselines3", "sb3_contrib"),
    *("wandb_workspaces", "gymnasium_robotics", "sympy", "jax"),
}
COMMANDS = ["train", "evaluate", "analyze", "collect", "report", "dashboard", "benchmark", "train_behaviour"]
DATA = {"numpy", "gymnasium", "minari", "h5py", "safetensors"}
PICTURES = {"matplotlib", "PIL"}
SIMULATOR = {"mujoco", "imageio"}  # Gymnasium's renderer imports both


def imported(stderr: str) -> dict[str, str]:
    """Each module that was imported, and the chain that brought it."""
    lines = [line.removeprefix(MARK).split("|") for line in stderr.splitlines() if line.startswith(MARK)]
    # indented by two for each that imports it, below a heading
    names = [name for cells in lines if (name := cells[2][1:].rstrip()) != "imported package"]
    chains: dict[str, str] = {}
    above: list[tuple[int, str]] = []  # those that later lines say were begun earlier
    for name in reversed(names):
        depth = len(name) - len(name.lstrip())
        while above and above[-1][0] >= depth:
            above.pop()
        above.append((depth, name.strip()))
        chains[name.strip()] = " <- ".join(one for _, one in reversed(above))
    return chains


def check_imports(stderr: str, allowed: set[str]) -> None:
    """Nothing heavy was imported but what is `allowed`."""
    chains = imported(stderr)
    assert chains, stderr
    assert {name: chain for name, chain in chains.items() if name in HEAVY - allowed} == {}


def said(stderr: str) -> list[str]:
    """The lines that the command itself wrote, without bars."""
    return [line for line in stderr.splitlines() if not line.startswith(MARK) and "%|" not in line]


def test_the_chain_of_an_import_is_read_from_what_python_tells() -> None:
    code = "import trajectory.data.returns"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "src", env={**os.environ, **TELL}, capture_output=True, text=True
    )
    chains = imported(process.stderr)
    assert chains["trajectory.data.returns"] == "trajectory.data.returns"
    assert chains["numpy"].startswith("numpy <- trajectory.data.")
    assert chains["numpy"].endswith(" <- trajectory.data.returns")
    with pytest.raises(AssertionError, match="numpy <- "):
        check_imports(process.stderr, set())


def test_what_processes_that_begin_lightly_have_is_not_heavy() -> None:
    code = f"import sys, {', '.join(LIGHT)}; print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "src", capture_output=True, text=True)
    assert set(LIGHT) <= set(process.stdout.split())
    assert not HEAVY & set(process.stdout.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_there_before_anything_heavy(command: str, tmp_path: Path) -> None:
    process = run_main(command, "--help", folder=tmp_path, **TELL)
    check_imports(process.stderr, set())
    assert f"python src/{command}.py" in process.stdout
    assert (process.returncode, said(process.stderr)) == (0, [])
    assert "debug: false" in process.stdout
    assert ("env: ant, " in process.stdout) == (
        command in ("train", "evaluate", "analyze", "collect", "train_behaviour")
    )
    assert ("  logger: csv, tensorboard, [wandb]" in process.stdout) == (
        command in ("train", "evaluate", "analyze", "dashboard")
    )
    swept = command in ("train", "evaluate", "analyze", "collect", "train_behaviour")
    assert ("hydra/launcher: [basic], " in process.stdout) == swept
    assert ("from_checkpoint" in process.stdout) == (command in ("evaluate", "analyze"))
    assert ("held_out" in process.stdout) == (command == "analyze")
    assert list(tmp_path.glob("outputs")) == []


def test_help_shows_the_config_that_overrides_make_and_ends_quietly_where_nobody_reads_on(tmp_path: Path) -> None:
    process = run_main("train", "env=walker2d", "planner.beam_width=7", "--help", folder=tmp_path)
    assert "[walker2d]" in process.stdout
    assert "  beam_width: 7\n" in process.stdout
    (tmp_path / "mine" / "env").mkdir(parents=True)
    (tmp_path / "mine" / "env" / "mine.yaml").write_text("# @package _global_\ndefaults: [gym]\nenv: {id: Mine-v0}\n")
    several = ("--config-dir", "mine", "env=mine", "logger=[csv,tensorboard]")
    process = run_main("train", *several, "--help", folder=tmp_path)
    assert "[mine]" in process.stdout
    assert "  id: Mine-v0\n" in process.stdout
    assert "  logger: [csv], [tensorboard], wandb\n" in process.stdout
    refused = run_main("train", "env=hoper", "-h", folder=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: In 'train': Could not find 'env/hoper'")
    assert len(refused.stderr.splitlines()) == 1
    command = f"{sys.executable} {ROOT}/src/train.py --help | head -n 1"
    piped = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert (piped.stdout.count("\n"), piped.stderr) == (1, "")


@pytest.mark.parametrize(
    ("command", "overrides", "line"),
    [
        ("train", ["planner.beam_widht=3"], "Could not override 'planner.beam_widht'."),
        ("train", ["env=hoper"], "In 'train': Could not find 'env/hoper'"),
        ("train", ["experiment=null"], "error: experiment must be one of antmaze_published, bc_tokens, "),
        (
            "train",
            ["critic=null", "--help"],
            "error: critic must be one of iql, iql_sparse, none, rebrac, or left out, got 'null'",
        ),
        ("train", ["--config-dir=nowhere"], "error: --config-dir must be a folder, got 'nowhere'"),
        (
            "train",
            ["planner=from_checkpoint"],
            "error: planner must be one of beam_search, critic, imitation with train, got 'from_checkpoint'",
        ),
        (
            "collect",
            ["dataset=held_out"],
            "error: dataset must be one of builtin, d4rl, minari, mixture, own with collect, got",
        ),
        ("train", ["planner.beam_width=0"], "error: planner.beam_width must be a whole number of at least 1, got 0"),
        ("train", ["trainer.max_steps=soon"], "error: trainer.max_steps: Value 'soon'"),
        ("train", ["planner.context=10"], "error: planner.context must leave room for planning"),
        ("train", ["dataset.steps=0"], "error: dataset.steps must be a whole number of at least 1, got 0"),
        ("train", ["dataset=own"], "error: dataset.id, dataset.path must be given, got '???'"),
        ("train", ["evaluation.goal=[1.0]"], "error: evaluation.goal must be null with env=hopper"),
        ("train", ["trainer.devices=2"], "error: trainer.devices must be 1 without"),
        ("evaluate", ["checkpoint=no.ckpt"], "error: checkpoint must be the path of a checkpoint file, got 'no.ckpt'"),
        ("evaluate", [], "error: checkpoint must be given, got '???'"),
        ("evaluate", ["checkpoint=no.ckpt", "planner.horizon=0"], "error: planner.horizon must be a whole number"),
        ("evaluate", ["checkpoint=no.ckpt", "planner.horizon=far"], "error: planner.horizon: Value 'far'"),
        ("analyze", ["analysis=attention", "checkpoint=no.ckpt"], "error: checkpoint must be the path of a checkpoint"),
        ("analyze", ["analysis=attention", "checkpoint=x", "analysis.windows=1"], "error: analysis.windows must be"),
        ("collect", ["dataset.seed=-1"], "error: dataset.seed must be a whole number from 0 to 2**32 - 1, got -1"),
        ("report", ["runs=nowhere"], "error: runs must be folders or patterns that match some, got 'nowhere'"),
        ("report", ["runs=.", "report.resamples=1"], "error: report.resamples must be at least 100, got 1"),
        ("dashboard", ["sections.new=[{lines: [a]}]", "--config-dir=."], "Could not override 'sections.new'"),
        ("benchmark", ["benchmark.suites=[speed]"], "error: benchmark.suites must be null or a list of planning"),
        ("benchmark", ["training.steps=0"], "error: training.steps must be at least 1, got 0"),
        ("train_behaviour", ["behaviour.steps=0"], "error: behaviour.steps must be at least 1, got 0"),
    ],
)
def test_what_the_settings_tell_to_be_wrong_is_refused_before_anything_heavy(
    command: str, overrides: list[str], line: str, tmp_path: Path
) -> None:
    process = run_lightly(command, *overrides, folder=tmp_path)
    assert process.returncode == 1
    check_imports(process.stderr, set())
    assert said(process.stderr)[0].startswith(line)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["env=gym", "env.id=Nope-v0"], "error: env.id must be a registered Gymnasium environment, got 'Nope-v0'"),
        (["+env.kwargs.legs=3"], "error: env.kwargs must be what Hopper-v5 takes, got {'legs': 3}"),
        (["env=pointmaze", "evaluation.goal=[9.0,9.0]"], "error: evaluation.goal must be in the maze of PointMaze"),
        (["trainer.num_nodes=2", "trainer=ddp"], "error: trainer.num_nodes must be 1 unless torchrun or srun"),
    ],
)
def test_what_the_environment_tells_to_be_wrong_is_refused_before_torch(
    overrides: list[str], line: str, tmp_path: Path
) -> None:
    process = run_lightly("train", *overrides, folder=tmp_path)
    assert process.returncode == 1
    check_imports(process.stderr, {*DATA, *PICTURES, *SIMULATOR, "gymnasium_robotics"})
    assert said(process.stderr)[-1].startswith(line)


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["--info", "defaults"], ["-sc", "install=bash"]])
def test_hydras_own_flags_import_nothing_heavy(flags: list[str], tmp_path: Path) -> None:
    process = run_lightly("train", *flags, folder=tmp_path)
    assert process.returncode == 0, process.stderr
    check_imports(process.stderr, set())
    assert process.stdout


def test_completion_offers_names_without_importing_anything_heavy(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"COMP_LINE": "python train.py env=wal", "COMP_POINT": "23"}
    process = run_main("train", "-sc", "query=bash", folder=tmp_path, **TELL, **asked)
    check_imports(process.stderr, set())
    assert process.stdout.split() == ["env=walker2d"]


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import trajectory; dir(trajectory)", set()),
        ("from trajectory import create_dataset; create_dataset.__doc__", DATA - {"h5py"}),
        ("from trajectory import TrajectoryAgent; TrajectoryAgent.from_checkpoint", {"torch", "numpy"}),
        ("import trajectory.settings, trajectory.sweeps.checks", set()),
    ],
)
def test_the_package_brings_what_is_asked_of_it_alone(code: str, allowed: set[str]) -> None:
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "src", env={**os.environ, **TELL}, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    check_imports(process.stderr, allowed)


def test_names_of_the_package_are_seen_and_others_refused() -> None:
    import trajectory

    assert {"TrajectoryAgent", "create_dataset"} <= set(dir(trajectory))
    with pytest.raises(AttributeError, match="module 'trajectory' has no attribute 'nothing'"):
        trajectory.nothing  # noqa: B018


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A training with its imports told, in a process of its own."""
    folder = tmp_path_factory.mktemp("trained")
    overrides = (*TINY, "logger=csv", "evaluation.video=false", "hydra.run.dir=run")
    return folder, run_main("train", *overrides, folder=folder, **TELL)


def test_training_says_what_it_is_about_to_do_and_only_then_loads_torch(
    trained: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    _, process = trained
    assert process.returncode == 0, process.stderr
    first = process.stdout.splitlines()[0]
    assert "hopper (Hopper-v5), dataset builtin medium: 6 training steps of" in first
    chains = imported(process.stderr)
    assert chains["torch"] == "torch <- trajectory.hardware"
    assert chains["pytorch_lightning"].endswith(" <- trajectory.training.run")
    assert "wandb" not in chains, "nobody asked for a dashboard"


def test_the_line_is_there_before_torch_is(tmp_path: Path) -> None:
    """The process is held where it would import torch; what it has said by then is in its log."""
    with (
        Hold(tmp_path / "hold", "import", "torch") as hold,
        running("train", *TINY, "hydra.run.dir=run", folder=tmp_path, **hold.variables) as process,
    ):
        hold.reached(process)
        assert "6 training steps of" in (tmp_path / "run" / "train.log").read_text()


def test_evaluation_and_analysis_do_without_lightning(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = trained
    chosen = ("checkpoint=run/last.ckpt", "logger=csv", "runtime.threads=1")
    evaluated = run_main("evaluate", *chosen, "evaluation.episodes=1", "evaluation.max_steps=2", folder=folder, **TELL)
    assert evaluated.returncode == 0, evaluated.stderr
    check_imports(evaluated.stderr, {"torch", *PICTURES, *DATA, *SIMULATOR})
    analysed = run_main("analyze", *chosen, "analysis=attention", "analysis.windows=2", folder=folder, **TELL)
    assert analysed.returncode == 0, analysed.stderr
    check_imports(analysed.stderr, {"torch", *PICTURES, *DATA, *SIMULATOR})


def test_collecting_does_without_torch(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = trained
    process = run_main("collect", "dataset.steps=1000", folder=folder, **TELL)
    assert process.returncode == 0, process.stderr
    check_imports(process.stderr, {*DATA, *PICTURES, *SIMULATOR})


def test_reports_and_dashboards_do_without_torch(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = trained
    reported = run_main("report", "runs=run", "report.resamples=100", folder=folder, **TELL)
    assert reported.returncode == 0, reported.stderr
    check_imports(reported.stderr, {"numpy", "scipy", "matplotlib", "PIL"})
    built = run_main("dashboard", folder=folder, **TELL)
    assert built.returncode == 0, built.stderr
    check_imports(built.stderr, {"wandb", "wandb_workspaces", "numpy", "PIL"})


def test_measuring_decisions_does_without_lightning(tmp_path: Path) -> None:
    narrow = ("planner.beam_width=2", "planner.horizon=1", "planning.seconds=0", "planning.reference_seconds=0")
    process = run_main("benchmark", *narrow, "benchmark.threads=1", folder=tmp_path, **TELL)
    assert process.returncode == 0, process.stderr
    check_imports(process.stderr, {"torch", "numpy", "matplotlib", "PIL"})


@pytest.mark.slow
def test_a_sweep_imports_once(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """In one process all jobs share what was imported; so do those of each of joblib's workers."""
    folder, _ = trained
    jobs = ("-m", *TINY, "logger=csv", "evaluation.video=false", "evaluation.every_n_steps=null", "seed=1,2")
    jobs += ("trainer.max_steps=1", "evaluation.episodes=1", "evaluation.max_steps=2")
    alone = run_main("train", *jobs, "hydra.sweep.dir=alone", folder=folder, **TELL)
    assert alone.returncode == 0, alone.stderr
    workers = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "hydra.sweep.dir=workers")
    shared = run_main("train", *jobs, *workers, folder=folder, **TELL)
    assert shared.returncode == 0, shared.stderr
    for process in (alone, shared):
        names = [line.rpartition("|")[2].strip() for line in process.stderr.splitlines() if line.startswith(MARK)]
        assert names.count("pytorch_lightning") == names.count("torch") == 1


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("train", "hydra"),
        ("train", "trajectory.settings"),
        ("train", "torch"),
        pytest.param("train", "torchmetrics", marks=pytest.mark.slow),
        ("collect", "minari"),
        ("report", "scipy"),
        ("benchmark", "torch"),
    ],
)
def test_ctrl_c_during_the_imports_is_one_line(command: str, module: str, tmp_path: Path) -> None:
    overrides = {"train": [*TINY, "logger=csv"], "report": ["runs=runs"]}.get(command, [])
    (tmp_path / "runs").mkdir()
    with (
        Hold(tmp_path / "hold", "import", module) as hold,
        running(command, *overrides, folder=tmp_path, **hold.variables) as process,
    ):
        hold.reached(process)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    assert (process.returncode, said(stderr)) == (130, ["interrupted"])


def plugin(folder: Path, source: str) -> dict[str, Any]:
    """Variables with which Hydra finds somebody's plugin."""
    place = folder / "theirs" / "hydra_plugins" / "somebodys"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text("")
    (place / "launcher.py").write_text(source)
    return {"PYTHONPATH": str(folder / "theirs")}


def test_a_plugin_that_raises_is_named_in_one_line(tmp_path: Path) -> None:
    process = run_main("train", "--cfg", "job", folder=tmp_path, **plugin(tmp_path, "raise RuntimeError('bang\\nboo')"))
    assert process.returncode == 1
    assert process.stderr == (
        "error: the Hydra plugin hydra_plugins.somebodys.launcher cannot be imported: RuntimeError: bang; "
        "repair or uninstall it\n"
    )


def test_a_plugin_that_lacks_something_costs_a_line_and_nothing_else(tmp_path: Path) -> None:
    process = run_main("train", "--cfg", "job", folder=tmp_path, **plugin(tmp_path, "import not_installed_here"))
    assert process.returncode == 0
    assert "beam_width: 128" in process.stdout
    (line,) = process.stderr.splitlines()
    assert line.startswith("warning: Error importing 'hydra_plugins.somebodys.launcher'")


@pytest.mark.parametrize(
    ("extra", "command", "overrides"),
    [
        pytest.param("tensorboard", "train", [*TINY, "logger=tensorboard"], marks=pytest.mark.slow),
        ("wandb_workspaces", "dashboard", []),
        pytest.param("optuna", "train", ["-m", *TINY, "hydra/sweeper=optuna", "search=laptop"], marks=pytest.mark.slow),
        ("joblib", "train", ["-m", *TINY, "hydra/launcher=joblib", "seed=0,1"]),
        ("pyarrow", "collect", ["dataset=own", "dataset.id=me/a-v0", "dataset.path=files"]),
        ("sb3_contrib", "train_behaviour", []),
    ],
)
def test_an_extra_that_is_installed_but_broken_is_one_line(
    extra: str, command: str, overrides: list[str], tmp_path: Path
) -> None:
    place = tmp_path / "broken" / extra
    place.mkdir(parents=True)
    (place / "__init__.py").write_text("raise RuntimeError('undefined symbol')")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "0.parquet").write_bytes(b"PAR1")
    process = run_main(command, *overrides, folder=tmp_path, PYTHONPATH=str(tmp_path / "broken"))
    assert process.returncode == 1, process.stderr
    lines = said(process.stderr)
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith("error: ")
    assert "undefined symbol" in lines[0]


@pytest.mark.slow
def test_a_tracker_that_is_broken_is_a_warning(tmp_path: Path) -> None:
    """Unlike packages without which a command cannot do what it was asked for."""
    place = tmp_path / "broken" / "wandb"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text("raise RuntimeError('undefined symbol')")
    process = run_main("train", *TINY, folder=tmp_path, PYTHONPATH=str(tmp_path / "broken"))
    assert process.returncode == 0, process.stderr
    warnings = [line for line in said(process.stdout + process.stderr) if "undefined symbol" in line]
    assert len(warnings) == 1, warnings
    assert "WARNING logger=wandb failed" in warnings[0]


def test_a_package_folder_that_cannot_be_written_has_no_effect(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    process = run_main("train", "--cfg", "job", folder=tmp_path, PYTHONPYCACHEPREFIX=str(tmp_path / "file" / "below"))
    assert (process.returncode, process.stderr) == (0, "")
