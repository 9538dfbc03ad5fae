"""End to end: what a user types, what the run leaves, and how bad input ends."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from helpers.command_line import ROOT, TINY, Refusal, compose_config, run_main, run_main_here
from helpers.example_data import HOPPER, save
from helpers.offline_run import points, records
from trajectory import TrajectoryAgent
from trajectory.behaviour.record import RecordedEpisode
from trajectory.commands.evaluate import evaluate
from trajectory.commands.train import train
from trajectory.data.store import load_episodes
from trajectory.model.decoder import resolve_precision
from trajectory.planning.settings import AGENT

EVALUATION = ("evaluation.episodes=2", "evaluation.max_steps=15", "runtime.threads=1")
MINARI = (*(override for override in TINY if not override.startswith("dataset.")), "dataset=minari")
RUN_FILES = {
    "config.yaml",
    "train.log",
    "data_card.png",
    "metrics.csv",
    "results.json",
    "rollout.png",
    "wandb",
    ".hydra",
}


@dataclass(frozen=True)
class Run:
    """A finished process and the folder that it left."""

    process: subprocess.CompletedProcess[str]
    folder: Path

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.folder / "results.json").read_text())

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The rows of metrics.csv, without their empty cells."""
        with (self.folder / "metrics.csv").open() as file:
            return [{key: float(cell) for key, cell in row.items() if cell} for row in csv.DictReader(file)]

    @property
    def table(self) -> list[list[str]]:
        """The words of the printed table, line by line."""
        lines = self.process.stdout.splitlines()
        start = next(index for index, line in enumerate(lines) if line.split()[:2] == ["episode", "seed"])
        end = next(index for index, line in enumerate(lines) if line.startswith("run folder: "))
        return [line.split() for line in lines[start:end] if not line.startswith("---")]


def finished(process: subprocess.CompletedProcess[str], folder: Path) -> Run:
    """A run that must have ended well, in the one folder that its last line names."""
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr
    last = process.stdout.rstrip().splitlines()[-1]
    assert last.startswith("run folder: ")
    return Run(process, folder / last.removeprefix("run folder: "))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of this file work: their outputs, home and Minari store."""
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def trained(place: Path) -> Run:
    # bars draw every step: on a fast machine the whole run takes less than the tenth of a second in between
    return finished(run_main("train", *TINY, folder=place, TQDM_MININTERVAL="0"), place)


@pytest.fixture(scope="module")
def evaluated(trained: Run, place: Path) -> Run:
    """The checkpoint planned with under a narrower beam, on a machine that cannot draw."""
    changes = ("planner.beam_width=1", "planner.precision=auto")
    overrides = (f"checkpoint={trained.folder / 'last.ckpt'}", *changes, *EVALUATION)
    return finished(run_main("evaluate", *overrides, folder=place, fresh=True, MUJOCO_GL="disable"), place)


@pytest.fixture(scope="module")
def swept(trained: Run, place: Path) -> Path:
    """Two seeds of the same run, without the evaluations in between; the folder that holds their folders."""
    overrides = ("-m", *TINY, "seed=0,1", "evaluation.every_n_steps=null", "logger=csv", "evaluation.video=false")
    process = run_main("train", *overrides, "hydra.sweep.dir=sweep", folder=place)
    assert process.returncode == 0, process.stderr
    return place / "sweep"


@pytest.fixture(scope="module")
def cloned(trained: Run, place: Path) -> Run:
    return finished(run_main("train", *TINY, "baseline=bc", "baseline.steps=50", folder=place), place)


@pytest.fixture(scope="module")
def brought(trained: Run, place: Path) -> Run:
    """A folder that holds nothing but the checkpoint of another."""
    folder = place / "brought"
    folder.mkdir()
    (folder / "last.ckpt").write_bytes((trained.folder / "last.ckpt").read_bytes())
    return Run(trained.process, folder)


@pytest.fixture(autouse=True)
def _restore_torch() -> Iterator[None]:
    """The mains set threads and seeds for a whole process; here there are other tests."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


def test_run_folder_is_under_outputs_and_holds_all_of_the_run(trained: Run, place: Path) -> None:
    assert trained.folder.parent == place / "outputs" / "train" / "hopper"
    names = {path.name for path in trained.folder.iterdir()}
    assert names - {"episode.mp4", "hparams.yaml"} == {*RUN_FILES, "last.ckpt", "best.ckpt"}
    assert trained.process.stdout.splitlines()[-2].split()[-1] in (trained.folder / "train.log").read_text()
    (offline,) = (trained.folder / "wandb").glob("offline-run-*")
    assert b"final/return_mean" in next(offline.glob("*.wandb")).read_bytes()


def test_video_is_an_mp4_or_one_line_says_what_to_install(trained: Run) -> None:
    video = trained.folder / "episode.mp4"
    if video.is_file():
        assert video.read_bytes()[4:8] == b"ftyp"
        assert "no video" not in trained.process.stdout
    else:
        assert len(re.findall(r"no video: .*install ", trained.process.stdout)) == 1


def test_saved_config_is_resolved_and_the_one_that_was_composed(trained: Run) -> None:
    text = (trained.folder / "config.yaml").read_text()
    assert "${" not in text
    assert "???" not in text
    assert OmegaConf.create(text) == compose_config("train", *TINY)


def test_every_long_part_shows_a_bar_with_the_time_left(trained: Run) -> None:
    for part in ("recording", "training", "rollouts"):
        assert re.search(rf"{part}[^\n]*\|[^\n]*\[\d\d:\d\d<\d\d:\d\d", trained.process.stderr), part


def test_metrics_have_training_evaluation_and_final_rows(trained: Run) -> None:
    losses = {row["step"]: row["train/loss"] for row in trained.metrics if "train/loss" in row}
    assert len(losses) == 3
    assert all(0 < loss < 20 for loss in losses.values())
    evaluations = {int(row["step"]): row for row in trained.metrics if "evaluation/return_mean" in row}
    assert list(evaluations) == [3, 6]
    for entry in trained.results["evaluations"]:
        assert evaluations[entry["step"]]["evaluation/return_mean"] == pytest.approx(entry["return_mean"])
    (final,) = [row for row in trained.metrics if "final/return_mean" in row]
    assert final["final/return_mean"] == pytest.approx(trained.results["return_mean"])


def test_a_row_of_metrics_describes_one_step(trained: Run) -> None:
    """The loss is the weighted mean of its kinds' losses, of the same batch; Hopper has 11 + 3 + 1 + 1 tokens."""
    counts = {"observation": 11 * 10 - 1, "action": 3 * 10, "reward": 10, "value": 10}  # predicted, per window
    optimizer = compose_config("train", *TINY).model.optimizer
    weights = {"observation": 1.0, **{kind: optimizer[f"{kind}_weight"] for kind in ("action", "reward", "value")}}
    rows = [row for row in trained.metrics if "train/loss" in row]
    assert rows
    for row in rows:
        expected = sum(counts[kind] * weights[kind] * row[f"train/loss_{kind}"] for kind in counts)
        assert row["train/loss"] == pytest.approx(expected / sum(counts.values()), rel=1e-3)
        assert row["speed/tokens_per_second"] > 0
        assert 0 < row["speed/utilisation_percent"] < 200, "percent; a product measured at a bad moment is too slow"


def number(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def check_results(results: dict[str, Any], seeds: list[int]) -> None:
    """Every key that results.json promises, with its type, and numbers that agree with each other."""
    assert results["environment"]["id"] == "Hopper-v5"
    assert results["environment"]["reference"] == {"random": -20.272305, "expert": 3234.3}
    dataset = results["dataset"]
    assert (dataset["id"], dataset["source"]) == ("trajectory/hopper/medium-steps1000-v0", "builtin")
    assert isinstance(dataset["episodes"], int)
    assert number(dataset["return_mean"])
    assert number(dataset["return_std"])
    assert [episode["seed"] for episode in results["episodes"]] == seeds
    for episode in results["episodes"]:
        assert number(episode["return"])
        assert 1 <= episode["length"] <= 15
        assert episode["normalized_score"] == pytest.approx(100 * (episode["return"] + 20.272305) / 3254.572305)
        assert isinstance(episode["terminated"], bool)
        assert isinstance(episode["truncated"], bool)
        assert episode["terminated"] != episode["truncated"]
    returns = [episode["return"] for episode in results["episodes"]]
    assert results["return_mean"] == pytest.approx(np.mean(returns))
    assert results["return_std"] == pytest.approx(np.std(returns))
    scores = [episode["normalized_score"] for episode in results["episodes"]]
    assert results["normalized_score_mean"] == pytest.approx(np.mean(scores))
    assert number(results["decision_latency_ms"])
    assert results["decision_latency_ms"] > 0
    assert results["wall_clock_s"].keys() == {"record", "train", "evaluate"}
    assert all(number(seconds) and seconds >= 0 for seconds in results["wall_clock_s"].values())
    assert results["versions"]["torch"] == torch.__version__
    assert {"python", "pytorch-lightning", "hydra-core", "gymnasium", "minari", "mujoco"} <= results["versions"].keys()
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", results["git_commit"]) if (ROOT / ".git").exists() else True


def test_results_of_training(trained: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = trained.results
    check_results(results, [1000, 1001])
    planner: Any = OmegaConf.to_container(compose_config("train", *TINY).planner)
    assert {"_target_": AGENT, **results["planner"]} == planner
    assert (results["seed"], results["steps"]) == (0, 6)
    assert results["wall_clock_s"]["record"] > 0
    assert results["cpu_s"].keys() == {"train"}
    assert results["cpu_s"]["train"] > 0
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(place / "store"))
    returns = load_episodes(results["dataset"]["id"]).returns()
    assert results["dataset"]["episodes"] == len(returns)
    assert results["dataset"]["return_mean"] == pytest.approx(returns.mean())
    assert results["dataset"]["return_std"] == pytest.approx(returns.std())


def test_table_shows_episodes_mean_and_data(trained: Run) -> None:
    results, (header, *episodes, mean, data) = trained.results, trained.table
    assert header[:6] == ["episode", "seed", "return", "percent", "score", "length"]
    whole = results["dataset"]["return_mean"]
    assert len(episodes) == len(results["episodes"])
    for index, (words, episode) in enumerate(zip(episodes, results["episodes"], strict=True)):
        values = (f"{episode['return']:.1f}", f"{100 * episode['return'] / whole:.0f}%")
        values += (f"{episode['normalized_score']:.1f}", str(episode["length"]))
        assert words[:6] == [str(index), str(episode["seed"]), *values]
    assert mean[:2] == ["mean", f"{results['return_mean']:.1f}"]
    assert mean[3] == f"{results['normalized_score_mean']:.1f}"
    assert data[:2] == ["data", f"{results['dataset']['return_mean']:.1f}"]


def unplain(value: Any) -> list[type]:
    """The types in a nested value that are not plain containers, numbers, strings or tensors."""
    if type(value) in (dict, OrderedDict):
        return [kind for pair in value.items() for part in pair for kind in unplain(part)]
    if type(value) in (list, tuple):
        return [kind for part in value for kind in unplain(part)]
    plain = (str, int, float, bool, type(None), torch.Tensor)
    return [] if type(value) in plain else [type(value)]


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_checkpoint_is_safe_to_load_and_holds_plain_containers(trained: Run, name: str) -> None:
    content = torch.load(trained.folder / name, weights_only=True)
    assert unplain(content) == []
    hyperparameters = content["hyper_parameters"]
    assert hyperparameters["environment"] == trained.results["environment"]
    assert hyperparameters["dataset"] == trained.results["dataset"]
    assert hyperparameters["planner"] == trained.results["planner"]
    assert {"discretizer.boundaries", "discretizer.values"} <= content["state_dict"].keys()


def test_best_checkpoint_is_of_the_best_evaluation(trained: Run) -> None:
    best = max(trained.results["evaluations"], key=lambda evaluation: evaluation["return_mean"])
    assert torch.load(trained.folder / "best.ckpt", weights_only=True)["global_step"] == best["step"]


def test_evaluation_of_the_checkpoint_repeats_the_final_episodes(trained: Run, tmp_path: Path) -> None:
    config = compose_config("evaluate", f"checkpoint={trained.folder / 'last.ckpt'}", *EVALUATION)
    mean = evaluate(config, tmp_path)
    repeated = json.loads((tmp_path / "results.json").read_text())
    assert mean == repeated["return_mean"]
    for key in ("environment", "dataset", "planner", "episodes", "return_mean", "steps", "versions", "git_commit"):
        assert repeated[key] == trained.results[key], key


def test_evaluation_restates_nothing_and_overrides_the_planner_alone(trained: Run, evaluated: Run) -> None:
    check_results(evaluated.results, [1000, 1001])
    changes = {"beam_width": 1, "precision": resolve_precision("auto", torch.device("cpu"))}
    assert evaluated.results["planner"] == {**trained.results["planner"], **changes}
    for key in ("environment", "dataset", "steps", "checkpoint"):
        assert evaluated.results[key] == trained.results[key], key
    assert evaluated.results["episodes"] != trained.results["episodes"]
    (shown,), (training,) = records(evaluated.folder, "run"), records(trained.folder, "run")
    assert (shown["job_type"], shown["run_group"]) == ("evaluate", training["run_group"])
    (final,) = points(evaluated.folder)
    assert final["final/return_mean"] == evaluated.results["return_mean"]
    assert len(evaluated.table) == 5


def test_where_nothing_can_be_drawn_one_line_names_the_package(evaluated: Run) -> None:
    assert not (evaluated.folder / "episode.mp4").exists()
    (line,) = [line for line in evaluated.process.stdout.splitlines() if "no video" in line]
    assert "install libegl1" in line


def test_same_seed_gives_the_same_run_whether_or_not_it_evaluates_in_between(trained: Run, swept: Path) -> None:
    same, other = (json.loads((swept / job / "results.json").read_text()) for job in ("0", "1"))
    assert same["episodes"] == trained.results["episodes"]
    assert same["dataset"] == other["dataset"] == trained.results["dataset"]
    assert other["seed"] == 1
    assert other["episodes"] != same["episodes"]
    weights = [
        torch.load(folder / "last.ckpt", weights_only=True)["state_dict"] for folder in (trained.folder, swept / "0")
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_sweep_over_environments_leaves_one_folder_per_run(tmp_path: Path) -> None:
    quick = ("dataset.quality=random", "evaluation.every_n_steps=null", "evaluation.video=false", "logger=csv")
    process = run_main("train", "-m", "env=hopper,walker2d", *TINY, *quick, folder=tmp_path)
    assert process.returncode == 0, process.stderr
    (sweep,) = (tmp_path / "outputs" / "train" / "sweeps").iterdir()
    results = [json.loads((sweep / run / "results.json").read_text()) for run in ("0", "1")]
    assert [result["environment"]["id"] for result in results] == ["Hopper-v5", "Walker2d-v5"]


def test_run_without_evaluations_in_between_has_a_best_checkpoint(swept: Path) -> None:
    assert (swept / "0" / "best.ckpt").is_file()


def test_logger_csv_writes_no_wandb_run(swept: Path) -> None:
    assert (swept / "0" / "metrics.csv").is_file()
    assert not (swept / "0" / "wandb").exists()


def test_clone_leaves_the_same_results(trained: Run, cloned: Run) -> None:
    check_results(cloned.results, [1000, 1001])
    assert cloned.results["dataset"] == trained.results["dataset"]
    assert cloned.results["planner"] is None
    assert cloned.results["baseline"]["steps"] == 50
    of_training = {"steps", "evaluations", "precision", "skipped_steps", "interrupted"}
    assert trained.results.keys() - of_training <= cloned.results.keys()
    assert RUN_FILES | {"policy.safetensors"} <= {path.name for path in cloned.folder.iterdir()}
    assert len(cloned.table) == 5


def test_collect_alone_records_the_same_data_in_another_store(trained: Run, tmp_path: Path) -> None:
    process = run_main("collect", "dataset.steps=1000", folder=tmp_path)
    assert process.returncode == 0, process.stderr
    dataset = trained.results["dataset"]
    assert (tmp_path / "store" / dataset["id"] / "data").is_dir()
    for key in dataset.keys() - {"requested"}:
        assert f"  {key}: {dataset[key]}\n" in process.stdout


def test_agent_of_a_checkpoint_controls_anyones_loop(trained: Run) -> None:
    agent = TrajectoryAgent.from_checkpoint(trained.folder / "last.ckpt")
    episode = trained.results["episodes"][0]
    env = gymnasium.make("Hopper-v5")
    observation, _ = env.reset(seed=episode["seed"])
    agent.reset(seeds=[episode["seed"]])
    rewards: list[float] = []
    terminated = False
    while not terminated and len(rewards) < 15:
        action = agent.act(observation, rewards[-1] if rewards else None)
        assert action in env.action_space
        observation, reward, terminated, _, _ = env.step(action)
        rewards.append(float(reward))
    env.close()
    assert sum(rewards) == pytest.approx(episode["return"], rel=1e-4)
    agent.reset(3)
    assert agent.act(np.zeros((3, 11))).shape == (3, 3)


@pytest.mark.parametrize(
    ("main", "overrides", "words"),
    [
        ("train", ["planner.horizon=0"], ["planner.horizon must be", "at least 1", "got 0"]),
        ("train", ["env.id=Nosuch-v0"], ["env.id must be", "'Nosuch-v0'"]),
        ("train", ["dataset=d4rl", "dataset.path=nosuch.hdf5"], ["dataset.path must be", "'nosuch.hdf5'"]),
        ("evaluate", ["checkpoint=nosuch.ckpt"], ["checkpoint must be", "'nosuch.ckpt'"]),
    ],
    ids=["horizon", "environment", "dataset", "checkpoint"],
)
def test_bad_input_ends_the_process_with_one_line(
    main: str, overrides: list[str], words: list[str], tmp_path: Path
) -> None:
    process = run_main(main, *overrides, folder=tmp_path)
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in words)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("override", "words"),
    [("planner.beem_width=64", ["planner.beem_width"]), ("env=nosuch", ["env/nosuch", "hopper"])],
    ids=["misspelt", "environment"],
)
def test_hydra_refuses_what_it_does_not_know_in_its_own_words(override: str, words: list[str], tmp_path: Path) -> None:
    process = run_main("train", override, folder=tmp_path)
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert all(word in process.stderr for word in words)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("env.id=Hopper-v9", ["env.id must be", "'Hopper-v9'"]),
        ("env.id=Hopper-v3", ["env.id must be", "'Hopper-v3'"]),
        ("env.id=nosuch_module:Env-v0", ["env.id must be", "'nosuch_module:Env-v0'"]),
        ("env.id=hopper-medium-v2", ["env.id must be", "'hopper-medium-v2'"]),
        ("env.id=minigrid:MiniGrid-FourRooms-v0", ["'mission' space", "env.observation_keys=[direction,image]"]),
        ("env.id=Walker2d-v5", ["env.id must be", "Hopper-v5", "'Walker2d-v5'"]),
        ("+env.kwargs.nosuch=1", ["env.kwargs", "nosuch"]),
        ("env=from_checkpoint", ["env.id"]),
        ("env=gym", ["env.id"]),
        ("+env.kwargs.healthy_reward=2.0", ["env.kwargs must be {}", "env=hopper", "2.0"]),
        ("env.observation_keys=[observation]", ["env.observation_keys must be null", "Hopper-v5", "['observation']"]),
        ("env.reference.expert=-100", ["env.reference must be", "-100"]),
        ("dataset.source=nosuch", ["dataset.source must be", "'nosuch'"]),
        ("dataset.quality=nosuch", ["dataset.quality must be", "random", "medium", "expert", "'nosuch'"]),
        ("dataset.source=own", ["dataset.path must be given", "dataset=own"]),
        ("dataset.source=d4rl", ["dataset.path must be given", "dataset=d4rl"]),
        ("dataset.source=minari", ["dataset.id must be given", "dataset=minari"]),
        ("dataset.steps=0", ["dataset.steps must be", "got 0"]),
        ("dataset.steps=many", ["dataset.steps must be", "'many'"]),
        ("dataset.seed=-1", ["dataset.seed must be", "got -1"]),
        ("planner.beam_width=0", ["planner.beam_width must be", "got 0"]),
        ("planner.beam_width=abc", ["planner.beam_width", "abc", "Integer"]),
        ("planner.horizon=0", ["planner.horizon must be", "got 0"]),
        ("planner.action.top_p=0", ["planner.action.top_p must be", "(0, 1]", "got 0.0"]),
        ("planner.action.top_p=1.5", ["planner.action.top_p must be", "(0, 1]", "got 1.5"]),
        ("planner.context=10", ["planner.context must", "window of 10", "at most 9", "got 10"]),
        ("model.n_embd=129", ["model.n_embd must be", "n_head=4", "got 129"]),
        ("model.optimizer.betas=[0.9,1.5]", ["model.optimizer.betas must be", "1.5"]),
        ("tokenizer.binning=nosuch", ["tokenizer.binning must be", "'nosuch'"]),
        ("tokenizer.bins=1", ["tokenizer.bins must be", "got 1"]),
        ("data.batch_size=abc", ["data.batch_size", "abc", "Integer"]),
        ("runtime.threads=0", ["runtime.threads must be", "'0'"]),
        ("evaluation.episodes=0", ["evaluation.episodes must be", "got 0"]),
        ("logger.wandb.mode=nosuch", ["logger.wandb.mode must be", "'nosuch'"]),
        ("logger.wandb.mode=online", ["logger.wandb.mode must be", "WANDB_API_KEY", "'online'"]),
        ("seed=abc", ["seed must be", "abc"]),
        ("seed=-1", ["seed must be", "-1"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_setting_of_training_is_one_line_and_records_nothing(
    refusal: Refusal, override: str, words: list[str]
) -> None:
    line = refusal("train", *TINY, override)
    assert all(word in line for word in words), line


def test_minari_dataset_must_be_named(refusal: Refusal) -> None:
    assert "dataset.id" in refusal("train", *MINARI)


def test_environment_without_reference_returns_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    quick = ("dataset.steps=200", "trainer.max_steps=1", "data.batch_size=2", "logger=csv", "evaluation.video=false")
    config = compose_config("train", *TINY, *quick, "evaluation.max_steps=2", "env.reference=null")
    train(config, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["normalized_score_mean"] is None
    assert [episode["normalized_score"] for episode in results["episodes"]] == [None, None]


def write_dataset(dataset_id: str, *, bad: float = 0.0) -> None:
    """Two episodes of nothing in the dimensions of Hopper-v5, with one number given."""
    episodes = [
        RecordedEpisode(
            np.zeros((length + 1, 11)), np.zeros((length, 3), np.float32), np.zeros(length), terminated=True
        )
        for length in (4, 6)
    ]
    episodes[1].observations[2, 5] = bad
    save(dataset_id, episodes, HOPPER)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_dataset_with_a_number_that_is_not_finite(refusal: Refusal, bad: float) -> None:
    write_dataset("test/broken-v0", bad=bad)
    line = refusal("train", *MINARI, "dataset.id=test/broken-v0")
    for word in ("dataset.id='test/broken-v0' must", "finite", str(bad), "observation[5]", "episode 1", "step 2"):
        assert word in line


def test_dataset_of_another_environment(refusal: Refusal) -> None:
    write_dataset("test/hopper-v0")
    line = refusal("train", *MINARI, "dataset.id=test/hopper-v0", "env.id=Walker2d-v5")
    for word in ("dataset.id='test/hopper-v0' must", "Walker2d-v5", "17", "6", "11", "3"):
        assert word in line


def test_dataset_that_is_only_half_in_the_store(refusal: Refusal, tmp_path: Path) -> None:
    (tmp_path / "store" / "test" / "half-v0" / "data").mkdir(parents=True)
    line = refusal("train", *MINARI, "dataset.id=test/half-v0")
    assert "dataset.id='test/half-v0' must" in line


def test_random_dataset_is_not_recorded_from_another_environment(refusal: Refusal) -> None:
    line = refusal("train", *TINY, "dataset.quality=random", "env.id=Swimmer-v5")
    assert "env.id must be" in line
    assert "'Swimmer-v5'" in line


def altered(trained: Run, path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the last checkpoint with its content changed."""
    content = torch.load(trained.folder / "last.ckpt", weights_only=True)
    change(content)
    torch.save(content, path)
    return path


def test_checkpoint_must_be_given(refusal: Refusal) -> None:
    assert refusal("evaluate") == "error: checkpoint must be given, got '???'"


def test_a_folder_used_again_holds_the_curves_of_its_last_run_alone(tmp_path: Path) -> None:
    ends = []
    for seed in (0, 1):
        command = (*TINY, "baseline=bc", "baseline.steps=50", f"seed={seed}", "hydra.run.dir=run")
        command += ("evaluation.video=false",)
        process = run_main_here("train", *command, folder=tmp_path)
        assert process.returncode == 0, process.stderr
        run = Run(process, tmp_path / "run")
        mean = run.results["return_mean"]
        assert [row["final/return_mean"] for row in run.metrics if "final/return_mean" in row] == [pytest.approx(mean)]
        assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*"))) == 1
        ends.append(mean)
    assert ends[0] != ends[1]


@pytest.mark.parametrize("of", ["trained", "cloned", "brought"])
@pytest.mark.parametrize(
    ("main", "few"),
    [("evaluate", ["evaluation.episodes=1"]), ("analyze", ["analysis=attention", "dataset.steps=300"])],
)
def test_what_looks_at_a_run_does_not_write_over_it(
    trained: Run, request: pytest.FixtureRequest, tmp_path: Path, main: str, few: list[str], of: str
) -> None:
    folder = shutil.copytree(request.getfixturevalue(of).folder, tmp_path / "run")
    files = [
        path for path in folder.rglob("*") if path.is_file() and path.suffix != ".log" and ".hydra" not in path.parts
    ]
    before = {path: path.read_bytes() for path in files}
    options = (f"checkpoint={trained.folder / 'last.ckpt'}", *few, f"hydra.run.dir={folder}")
    process = run_main_here(main, *options, folder=folder.parent)
    assert process.returncode == 1
    assert f"error: hydra.run.dir must be a folder other than a training's, got '{folder}'" in process.stderr
    assert [path for path in before if not path.is_file() or path.read_bytes() != before[path]] == []


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_truncated_checkpoint(refusal: Refusal, trained: Run, tmp_path: Path, keep: float) -> None:
    content = (trained.folder / "last.ckpt").read_bytes()
    path = tmp_path / "short.ckpt"
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    line = refusal("evaluate", f"checkpoint={path}")
    assert line.startswith(f"error: checkpoint must be a complete checkpoint of this project, got '{path}'")


@pytest.mark.parametrize(
    "content",
    [b"not a checkpoint\n", b"{}", b"PK\x03\x04" + bytes(200), bytes(100), b"\xff" * 50, b"\x80\x02N.", b"\x80\x02}."],
    ids=["text", "json", "zip", "zeros", "ones", "pickled none", "pickled dictionary"],
)
def test_file_that_is_no_checkpoint(refusal: Refusal, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage.ckpt"
    path.write_bytes(content)
    line = refusal("evaluate", f"checkpoint={path}")
    assert line.startswith(f"error: checkpoint must be a complete checkpoint of this project, got '{path}'")


def test_folder_in_place_of_a_checkpoint(refusal: Refusal, tmp_path: Path) -> None:
    line = refusal("evaluate", f"checkpoint={tmp_path}")
    assert f"checkpoint must be the path of a checkpoint file, got '{tmp_path}'" in line


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("hyper_parameters"),
        lambda content: content.pop("state_dict"),
        lambda content: content["state_dict"].pop("ema.head"),
        lambda content: content["hyper_parameters"]["model"].update(n_layer=2),
        lambda content: content["hyper_parameters"].pop("planner"),
        lambda content: content["hyper_parameters"]["model"].update(nosuch=1),
    ],
    ids=["no hyperparameters", "no weights", "a weight lost", "another size", "no planner", "a key of another version"],
)
def test_checkpoint_of_another_kind(
    refusal: Refusal, trained: Run, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    path = altered(trained, tmp_path / "other.ckpt", change)
    line = refusal("evaluate", f"checkpoint={path}", *EVALUATION)
    assert line.startswith(f"error: checkpoint must be a complete checkpoint of this project, got '{path}'")


def test_checkpoint_of_another_environment(refusal: Refusal, trained: Run, tmp_path: Path) -> None:
    checkpoint = f"checkpoint={trained.folder / 'last.ckpt'}"
    line = refusal("evaluate", checkpoint, "env.id=Walker2d-v5")
    for word in ("env.id must be Hopper-v5", str(trained.folder / "last.ckpt"), "got 'Walker2d-v5'"):
        assert word in line

    def to_walker(content: dict[str, Any]) -> None:
        content["hyper_parameters"]["environment"]["id"] = "Walker2d-v5"

    path = altered(trained, tmp_path / "walker.ckpt", to_walker)
    line = refusal("evaluate", f"checkpoint={path}", "env=hopper")
    assert "env.id must be Walker2d-v5" in line
    assert "got 'Hopper-v5'" in line
    line = refusal("evaluate", f"checkpoint={path}")
    assert f"checkpoint={path} must have the dimensions of Walker2d-v5" in line


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("planner.beam_width=0", ["planner.beam_width must be", "got 0"]),
        ("planner.horizon=abc", ["planner.horizon", "abc", "Integer"]),
        ("planner.action.top_p=0", ["planner.action.top_p must be", "got 0.0"]),
        ("planner.context=10", ["planner.context must", "at most 9", "got 10"]),
        ("evaluation.episodes=0", ["evaluation.episodes must be", "got 0"]),
        ("runtime.threads=none", ["runtime.threads must be", "'none'"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_setting_of_evaluation(refusal: Refusal, trained: Run, override: str, words: list[str]) -> None:
    line = refusal("evaluate", f"checkpoint={trained.folder / 'last.ckpt'}", override)
    assert all(word in line for word in words), line
