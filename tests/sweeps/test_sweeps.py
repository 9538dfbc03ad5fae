"""Many runs by one command: every launcher that is installed here, the search, what fails and what goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from helpers.command_line import CONF, ROOT, TINY, compose_config, run_main, run_main_here
from helpers.holding import Hold, running
from helpers.slurm import one_machine_slurm, said
from hydra_plugins.trajectory_sweepers.grid import GridSweeper, values
from hydra_plugins.trajectory_sweepers.search import Choices
from trajectory.errors import UserError
from trajectory.interruption import Interruption
from trajectory.sweeps.checks import check_job
from trajectory.sweeps.folders import RECORD, sweep_folder
from trajectory.sweeps.jobs import CatchingTask, JobResult, summary
from trajectory.sweeps.search import PRUNED, TRIAL_VARIABLE, open_study, pruning_callback, trial_reference

QUICK = (*TINY, "dataset.quality=random", "evaluation.every_n_steps=null", "evaluation.video=false", "logger=csv")
MEDIAN: dict[str, Any] = {"name": "MedianPruner", "n_startup_trials": 1}


def swept(process: subprocess.CompletedProcess[str], place: Path, main: str = "train") -> Path:
    """The one folder of a sweep that must have ended well."""
    assert process.returncode == 0, process.stderr
    assert "Warning" not in process.stderr
    (folder,) = (place / "outputs" / main / "sweeps").iterdir()
    return folder


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def in_parallel(place: Path) -> Path:
    """Two jobs at a time that need the same dataset, which is not there."""
    threads = [override for override in QUICK if not override.startswith("runtime.threads")]
    process = run_main("train", "-m", *threads, "seed=0,1", "hydra/launcher=joblib", folder=place)
    folder = swept(process, place)
    assert len(re.findall(r"recording Hopper-v5: +0%", process.stderr)) == 1
    return folder


def test_joblib_runs_two_jobs_that_share_cores_and_record_their_data_once(in_parallel: Path) -> None:
    runs = [results(in_parallel / job) for job in ("0", "1")]
    assert [run["seed"] for run in runs] == [0, 1]
    assert runs[0]["dataset"] == runs[1]["dataset"]
    cores = len(os.sched_getaffinity(0))
    for job in ("0", "1"):
        (threads,) = re.findall(r"CPU threads of each: (\d+)", (in_parallel / job / "train.log").read_text())
        assert int(threads) <= max(1, cores // 2)


def planned(checkpoint: Path) -> tuple[str, ...]:
    return (
        f"checkpoint={checkpoint}",
        "logger=csv",
        "runtime.threads=1",
        "evaluation.episodes=1",
        "evaluation.max_steps=3",
    )


def test_planner_sweeps_on_one_checkpoint_without_training(in_parallel: Path, tmp_path: Path) -> None:
    grid = ("planner.beam_width=1,2", "planner.horizon=1,2", "evaluation.video=false")
    process = run_main_here("evaluate", "-m", *planned(in_parallel / "0" / "last.ckpt"), *grid, folder=tmp_path)
    folder = swept(process, tmp_path, "evaluate")
    planners = [results(folder / str(job))["planner"] for job in range(4)]
    assert [(planner["beam_width"], planner["horizon"]) for planner in planners] == [(1, 1), (1, 2), (2, 1), (2, 2)]


@pytest.mark.slow
def test_jobs_run_in_processes_of_submitit(in_parallel: Path, tmp_path: Path) -> None:
    overrides = ("planner.beam_width=1,2", "hydra/launcher=submitit_local", "evaluation.video=false")
    process = run_main_here("evaluate", "-m", *planned(in_parallel / "0" / "last.ckpt"), *overrides, folder=tmp_path)
    folder = swept(process, tmp_path, "evaluate")
    assert [results(folder / str(job))["planner"]["beam_width"] for job in range(2)] == [1, 2]
    assert list((folder / ".submitit").iterdir())


def test_a_failed_job_loses_no_other_and_the_same_command_resumed_runs_what_is_missing(
    in_parallel: Path, place: Path
) -> None:
    command = ("-m", *QUICK[:-1], "logger=csv", "dataset.quality=medium,nosuch", "seed=0,1", "hydra.sweep.dir=failing")
    process = run_main_here("train", *command, folder=place)
    assert process.returncode == 1
    last = process.stderr.splitlines()[-1]
    assert last.startswith("error: 2 of 4 jobs failed: 2 (dataset.quality=nosuch seed=0): dataset.quality must be")
    assert "; 3 (dataset.quality=nosuch seed=1): dataset.quality must be" in last
    assert sorted(path.name for path in (place / "failing").iterdir()) == ["0", "1", RECORD]

    refused = run_main_here("train", *command, folder=place)
    assert refused.stderr == f"error: resume must be true to continue the sweep in {place / 'failing'}, or " + (
        "hydra.sweep.dir another folder, got False\n"
    )
    before = (place / "failing" / "0" / "results.json").stat().st_mtime_ns
    (place / "failing" / "1" / "results.json").unlink()
    process = run_main_here("train", *command, "resume=true", folder=place)
    assert "1 of the 4 jobs" in process.stdout
    assert "error: 2 of 4 jobs failed: 2 " in process.stderr
    assert (place / "failing" / "0" / "results.json").stat().st_mtime_ns == before
    assert results(place / "failing" / "1")["seed"] == 1
    assert "going on from step 6" in (place / "failing" / "1" / "train.log").read_text()


def test_a_search_stops_bad_trials_and_says_which_was_the_best(in_parallel: Path, place: Path) -> None:
    """Episodes of one step earn less than those of fifteen."""
    space = ("evaluation.max_steps=choice(1,15)", "model.optimizer.learning_rate=tag(log,interval(1e-3,1e-2))")
    options = ("hydra.sweeper.n_trials=4", "hydra.sweeper.pruner.n_startup_trials=1", "hydra.sweeper.sampler.seed=1")
    as_then = "model.optimizer.muon_learning_rate=null"  # or a trial of fifteen steps would be the one that is stopped
    command = ("-m", *QUICK, "hydra/sweeper=optuna", "evaluation.every_n_steps=3", as_then, *space, *options)
    folder = swept(run_main_here("train", *command, folder=place / "search", **shared(place)), place / "search")
    found = OmegaConf.to_container(OmegaConf.load(folder / "optimization_results.yaml"))
    assert isinstance(found, dict)
    best = results(Path(found["best_folder"]))
    assert found["best_value"] == pytest.approx(best["return_mean"])
    assert found["best_params"]["evaluation.max_steps"] == 15
    trials = [results(folder / str(number)) for number in range(4)]
    stopped = [trial for trial in trials if trial.get("pruned")]
    assert found["trials"] == {"complete": 4 - len(stopped), "pruned": len(stopped)}
    assert stopped
    for trial in stopped:
        assert (trial["steps"], trial["interrupted"], len(trial["evaluations"])) == (3, True, 1)
        assert {episode["length"] for episode in trial["episodes"]} == {1}
    rates = {results_config(folder / str(number)).model.optimizer.learning_rate for number in range(4)}
    assert len(rates) == 4
    assert all(1e-3 <= rate <= 1e-2 for rate in rates)

    again = (*command, "resume=true", "hydra.sweeper.n_trials=5")
    more = run_main_here("train", *again, folder=place / "search", **shared(place))
    assert more.returncode == 0, more.stderr
    assert "4 trials are finished" in more.stdout
    assert results(folder / "4")


def shared(place: Path) -> dict[str, str]:
    """The store and the tokens of the other tests."""
    (place / "search").mkdir(exist_ok=True)
    return {"MINARI_DATASETS_PATH": str(place / "store")}


def results_config(folder: Path) -> Any:
    return OmegaConf.load(folder / "config.yaml")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["planner.beam_width=8,abc"], ["planner.beam_width", "'abc'", "Integer"]),
        (["seed=0,abc"], ["seed must be a whole number", "'abc'"]),
        (["planner.horizon=0,5"], ["planner.horizon must be", "at least 1", "got 0"]),
        (["seed=interval(0,1)"], ["seed must be", "unless hydra/sweeper=optuna"]),
        (["hydra/sweeper=optuna"], ["hydra.sweeper.params must be given", "search=..."]),
        (["hydra/sweeper=optuna", "seed=0,1", "hydra.sweeper.pruner.name=No"], ["pruner.name", "MedianPruner", "'No'"]),
        (["search=laptop", "planner.beam_width=choice(8,abc)"], ["planner.beam_width", "'abc'", "Integer"]),
        (["seed=0,1", "planner.context=20"], ["planner.context must", "window of 10", "got 20"]),
        (["baseline=dt,nope"], ["baseline=nope", "Could not find 'baseline/nope'"]),
        (["baseline=null,dt"], ["baseline=null", "must be a string"]),
        (["baseline=dt,iql", "++baseline.steps=0"], ["baseline.steps must be at least 1, got 0"]),
        (["seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=0"], ["hydra/launcher=joblib cannot", "n_jobs"]),
        (["seed=0,1", "hydra/launcher=ray"], ["hydra/launcher=ray needs", "pip install -e '.[ray]'"]),
    ],
    ids=lambda value: value[-1] if value and "=" in value[-1] else "",
)
def test_what_cannot_be_right_is_one_line_before_anything_begins(
    arguments: list[str], words: list[str], tmp_path: Path
) -> None:
    process = run_main_here("train", "-m", *arguments, "trainer.max_steps=1", folder=tmp_path)
    (line,) = process.stderr.splitlines()
    assert process.returncode == 1
    assert line.startswith("error: ")
    assert all(word in line for word in words), line
    assert list(tmp_path.rglob("sweeps/*")) == []


def test_a_launcher_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("joblib", "submitit_local", "submitit_slurm", "ray"):
        config: Any = OmegaConf.load(CONF / "hydra" / "launcher" / f"{name}.yaml")
        sweeper = GridSweeper()
        sweeper.master = OmegaConf.create(
            {
                "hydra": {
                    "runtime": {"choices": {"hydra/launcher": name}},
                    "launcher": {"_target_": f"{config.launcher._target_}OfAnotherPackage"},
                }
            }
        )
        extra = "ray" if name == "ray" else "sweeps"
        with pytest.raises(UserError, match=rf"^hydra/launcher={name} needs .*`pip install -e '\.\[{extra}\]'`$"):
            sweeper.begin([], [])


def test_every_launcher_file_names_a_class_of_its_plugin_or_of_none_that_is_here() -> None:
    known = Plugins.instance().class_name_to_class
    targets = {
        path.stem: OmegaConf.load(path).launcher._target_ for path in (CONF / "hydra" / "launcher").glob("*.yaml")
    }
    assert set(targets) == {"basic", "joblib", "submitit_local", "submitit_slurm", "ray"}
    assert {name for name, target in targets.items() if target in known} >= set(targets) - {"ray"}
    compose_config("train", "hydra/launcher=joblib")
    assert "joblib.yaml" not in ConfigStore.instance().repo["hydra"]["launcher"]


def leaving(error: Exception) -> Callable[[Any], None]:
    """A main's function that tells of an error in one line."""

    def run(config: Any) -> None:
        try:
            raise error
        except UserError:
            sys.exit(1)

    return run


def test_an_attempt_ends_with_an_outcome(capsys: pytest.CaptureFixture) -> None:
    assert CatchingTask(lambda config: 2 * config)(3) == JobResult(6)
    assert CatchingTask(leaving(UserError("seed must be 0")))(None) == JobResult(failure="seed must be 0")
    assert "Traceback" not in capsys.readouterr().err
    assert CatchingTask(leaving(MemoryError("all gone\nreally")))(None) == JobResult(failure="MemoryError: all gone")
    assert "really" in capsys.readouterr().err


def test_a_signal_ends_the_sweep_in_its_own_process_and_only_the_job_in_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempt = CatchingTask(lambda config: sys.exit(143))
    with pytest.raises(SystemExit):
        attempt(None)
    attempt.starter += 1
    assert attempt(None) == JobResult(failure="exit code 143")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    with pytest.raises(SystemExit):  # it is queued again
        attempt(None)


def test_the_summary_is_one_line() -> None:
    assert summary({"1 (seed=1)": "no", "3 (seed=3)": "never"}, 4) == (
        "2 of 4 jobs failed: 1 (seed=1): no; 3 (seed=3): never"
    )


def record(folder: Path, *overrides: str) -> Path:
    folder.mkdir(parents=True)
    OmegaConf.save({"hydra": {"overrides": {"task": list(overrides)}}}, folder / RECORD)
    return folder


def test_a_sweep_is_resumed_in_the_newest_folder_of_the_same_overrides(tmp_path: Path) -> None:
    record(tmp_path / "2026-01-01", "seed=0,1")
    newest = record(tmp_path / "2026-01-02", "seed=0,1", "logger=csv")
    record(tmp_path / "2026-01-03", "seed=0,1,2")
    new = tmp_path / "2026-01-04"
    assert sweep_folder(new, ["seed=0,1", "resume=true"], given=False, resume=True) == newest
    assert sweep_folder(new, ["seed=5"], given=False, resume=True) == new
    assert sweep_folder(new, ["seed=0,1"], given=False, resume=False) == new
    with pytest.raises(UserError, match="resume must be true to continue the sweep"):
        sweep_folder(newest, ["seed=0,1"], given=True, resume=False)
    with pytest.raises(UserError, match="continued sweep must be seed=0,1"):
        sweep_folder(newest, ["seed=0"], given=True, resume=True)


def test_sweeps_begun_in_the_same_second_have_folders_of_their_own(tmp_path: Path) -> None:
    first = record(tmp_path / "now")
    second = sweep_folder(first, [], given=False, resume=False)
    assert second.name == "now_2"
    record(second)
    assert sweep_folder(first, [], given=False, resume=False).name == "now_3"


def parsed(text: str) -> Any:
    return OverridesParser.create().parse_override(text)


def test_values_of_an_override() -> None:
    assert values(parsed("env=hopper,walker2d")) == ["env=hopper", "env=walker2d"]
    assert values(parsed("seed=range(2,5)")) == ["seed=2", "seed=3", "seed=4"]
    assert values(parsed("+a='b c'")) == ["+a='b c'"]


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ("a=range(3,16)", [3, 15]),
        ("a=range(8,33,8)", [8, 32]),
        ("a=interval(0.1,0.9)", [0.1, 0.9]),
        ("a=tag(log,interval(1e-3,1e-2))", [1e-3, 1e-2]),
        ("a=choice(8,abc,true)", [8, "abc", True]),
        ("a=hopper,walker2d", ["hopper", "walker2d"]),
    ],
)
def test_a_search_draws_from_what_the_override_says(text: str, bounds: list[Any]) -> None:
    choices = Choices(parsed(text))
    assert choices.bounds() == bounds
    study = open_study("sqlite://", "bounds", direction="maximize", pruner=MEDIAN)
    drawn = [study.ask({"a": choices.distribution}).params["a"] for _ in range(20)]
    if choices.texts:
        assert set(drawn) <= set(bounds)
    else:
        assert bounds[0] <= min(drawn) < max(drawn) <= bounds[1]
        assert type(drawn[0]) is type(bounds[0])
    assert getattr(choices.distribution, "log", False) is ("log" in text)


@pytest.mark.parametrize("text", ["a=range(5,5)", "a=tag(log,interval(0,1))", "a=interval(2,1)"])
def test_a_range_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^a"):
        Choices(parsed(text))


def test_a_trial_hears_from_the_study_that_it_is_a_bad_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pruning_callback() is None
    storage = str(tmp_path / "study.log")
    study = open_study(storage, "study", direction="maximize", pruner=MEDIAN)
    answers = []
    for value in (100.0, 50.0, 200.0):
        trial = study.ask()
        reference = trial_reference(storage, "study", trial._trial_id, direction="maximize", pruner=MEDIAN)
        monkeypatch.setenv(TRIAL_VARIABLE, reference)
        report = pruning_callback()
        assert report is not None
        answers.append(report(10, value))
        study.tell(trial.number, value)
    assert answers == [False, True, False]
    assert [PRUNED in trial.user_attrs for trial in study.get_trials()] == answers


def test_a_storage_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hydra\.sweeper\.storage must be a file or a database URL .*got 'nosuch://x'"):
        open_study("nosuch://x", "study", direction="maximize", pruner=MEDIAN)


def test_jobs_of_every_main_are_checked_by_their_settings(in_parallel: Path) -> None:
    for name in sorted(path.stem for path in (CONF / "baseline").glob("*.yaml")):
        check_job(compose_config("train", f"baseline={name}"))
    with pytest.raises(UserError, match=r"baseline\.expectile"):
        check_job(compose_config("train", "baseline=iql", "baseline.expectile=high"))
    checkpoint = f"checkpoint={in_parallel / '0' / 'last.ckpt'}"
    check_job(compose_config("evaluate", checkpoint, "planner.horizon=3"))
    with pytest.raises(UserError, match=r"planner\.horizon"):
        check_job(compose_config("evaluate", checkpoint, "planner.horizon=abc"))
    # the horizon is as the checkpoint has it, not the default one
    with pytest.raises(UserError, match=r"planner\.replan_interval must be at most planner\.horizon=2, got 3"):
        check_job(compose_config("evaluate", checkpoint, "planner.replan_interval=3"))
    for missing in ([], ["checkpoint=nowhere.ckpt"]):
        with pytest.raises(UserError, match=r"^checkpoint must be"):
            check_job(compose_config("evaluate", *missing))
    with pytest.raises(UserError, match=r"model\.optimizer\.learning_rate"):
        check_job(compose_config("train", "model.optimizer.learning_rate=fast"))


@pytest.mark.parametrize(("main", "search"), [("train", "laptop"), ("train", "planner"), ("evaluate", "planner")])
def test_what_a_search_varies_are_keys_of_the_main(main: str, search: str, in_parallel: Path) -> None:
    checkpoint = [f"checkpoint={in_parallel / '0' / 'last.ckpt'}"] if main == "evaluate" else []
    given: Any = OmegaConf.load(CONF / "search" / f"{search}.yaml").hydra.sweeper.params
    for key, text in given.items():
        for bound in Choices(parsed(f"{key}={text}")).bounds():
            check_job(compose_config(main, f"search={search}", f"{key}={bound}", *checkpoint))


def test_parameters_of_the_weights_and_biases_sweep_are_keys_of_training() -> None:
    sweep = yaml.safe_load((CONF / "wandb_sweep.yaml").read_text())
    assert (ROOT / sweep["program"]).is_file()
    assert sweep["command"] == ["${env}", "${interpreter}", "${program}", "${args_no_hyphens}"]
    assert (sweep["metric"]["name"], sweep["metric"]["goal"]) == ("evaluation/return_mean", "maximize")
    for take in (min, max):
        chosen = [f"{key}={_value(spec, take)}" for key, spec in sweep["parameters"].items()]
        # online, which nobody without an account may be
        check_job(compose_config("train", *chosen, "logger.wandb.mode=offline"))


def _value(spec: dict[str, Any], take: Callable[..., Any]) -> Any:
    if "value" in spec:
        return spec["value"]
    return take(spec["values"] if "values" in spec else (spec["min"], spec["max"]))


def test_a_launcher_that_handled_the_signal_hears_of_it_once_the_checkpoint_is_written() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))
    try:
        interruption = Interruption()
        with interruption.handle_signals(defer=True):
            signal.raise_signal(signal.SIGUSR2)
            assert interruption.requested
            assert heard == []
        with pytest.raises(SystemExit) as leave:
            interruption.exit_if_preempted()
        assert heard == [signal.SIGUSR2]
        assert leave.value.code == 128 + signal.SIGUSR2
    finally:
        signal.signal(signal.SIGUSR2, before)


SLURM = shutil.which("sbatch") and shutil.which("munged", path="/usr/sbin") and os.getuid() == 0
LONG = (*QUICK, "trainer.max_steps=60", "callbacks.last_checkpoint.every_n_steps=100000", "evaluation.max_steps=3")


def preempted(folder: Path, launcher: str, preempt: Callable[[int], object], place: Path, **variables: Any) -> None:
    """A sweep of one job, which must go on from its checkpoint when it was preempted amid its training.

    The job is held there until the signal has come, however long its way; the one that goes on is not.

    Args:
        preempt: is given the number of the job's process.
    """
    command = ("-m", *LONG, f"hydra/launcher={launcher}", "hydra.launcher.cpus_per_task=1", f"hydra.sweep.dir={folder}")
    with (
        Hold(folder.with_name(f"{folder.name}-hold"), "open", f"{folder.name}/0/metrics.csv", 5) as hold,
        running("train", *command, folder=place, **variables, **hold.variables) as process,
    ):
        job = hold.reached(process)
        hold.lift()
        preempt(job)
        _, err = process.communicate()
    assert process.returncode == 0, err
    log = (folder / "0" / "train.log").read_text()
    assert "ended by SIGUSR2" in log
    assert re.search(r"going on from step \d+ of", log)
    assert results(folder / "0")["steps"] == 60


@pytest.mark.slow
def test_a_job_of_submitit_that_is_preempted_goes_on_from_its_checkpoint(place: Path) -> None:
    """As on a cluster: SIGUSR2, a checkpoint, queued again, the rest."""
    preempted(place / "requeued", "submitit_local", lambda job: os.kill(job, signal.SIGUSR2), place)


@pytest.mark.slow
def test_a_killed_job_of_joblib_loses_no_other(place: Path) -> None:
    """Two of three are amid their training when one of them is killed."""
    overrides = ("seed=0,1,2", "hydra/launcher=joblib", "hydra.sweep.dir=killed", "trainer.max_steps=60")
    with (
        Hold(place / "killed-hold", "open", "/metrics.csv", 5) as hold,
        running("train", "-m", *QUICK, *overrides, folder=place, **hold.variables) as process,
    ):
        jobs = {hold.reached(process) for _ in range(2)}
        assert len(jobs - {process.pid}) == 2
        hold.lift()
        os.kill(jobs.pop(), signal.SIGKILL)
        hold.let_go()
        _, err = process.communicate()
    assert process.returncode == 0, err
    assert [results(place / "killed" / str(job))["seed"] for job in range(3)] == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.skipif(not SLURM, reason="needs root and apt install slurmctld slurmd slurm-client munge")
def test_slurm_runs_an_array_and_a_job_that_is_preempted_goes_on_from_its_checkpoint(place: Path) -> None:
    with one_machine_slurm(place / "slurm") as variables:
        array = ("seed=0,1", "hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1")
        process = run_main("train", "-m", *QUICK, *array, "hydra.sweep.dir=array", folder=place, **variables)
        assert process.returncode == 0, process.stderr
        assert [results(place / "array" / job)["seed"] for job in ("0", "1")] == [0, 1]
        ids = {path.name for path in (place / "array" / ".submitit").iterdir() if re.fullmatch(r"\d+_\d+", path.name)}
        assert sorted(name.partition("_")[2] for name in ids) == ["0", "1"]
        assert len({name.partition("_")[0] for name in ids}) == 1, "both are of one array"

        def preempt(process: int) -> None:
            (job,) = said("squeue", "--noheader", "--format=%i", **variables).split()
            said("scancel", "--signal=USR2", job, **variables)

        preempted(place / "queued", "submitit_slurm", preempt, place, **variables)
