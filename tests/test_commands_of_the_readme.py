"""Every command of the README runs to its end in miniature, from top to bottom in one folder."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import gymnasium
import numpy as np

from helpers.command_line import ROOT, SHORT, run_main
from helpers.example_data import write_d4rl

COMMANDS = re.findall(r"`python src/(\w+)\.py ([^`]*)`", (ROOT / "README.md").read_text())
PREDICTION = (
    *("analysis.horizon=6", "analysis.starts=3", "analysis.samples=4", "analysis.particles=8"),
    *("analysis.ensemble.members=2", "analysis.ensemble.hidden=[8]", "analysis.ensemble.epochs=1"),
    *("analysis.video=false", "logger=csv"),
)
QUICK = (
    *("trainer.max_steps=2", "data.batch_size=4", "evaluation.every_n_steps=2", "evaluation.periodic_episodes=1"),
    *("evaluation.episodes=1", "evaluation.max_steps=4"),
)
SMALL = {  # what makes a command short, by a word of it; all words that occur count
    "train": (*QUICK, *(one for one in SHORT if one.startswith(("model.", "runtime.", "trainer.log")))),
    "env=hopper": ("dataset.steps=1000", "planner.horizon=2"),
    "env=gym": ("planner.horizon=2",),
    "env=hopper,walker2d": ("dataset.steps=1000", "hydra.launcher.n_jobs=1"),
    "experiment=four_rooms": ("dataset.steps=1000",),
    "experiment=maze": ("dataset.steps=1000", "critic.steps=40", "critic.hidden=[8]"),
    "experiment=laptop": ("critic.steps=40", "critic.hidden=[8]"),
    "critic=iql": ("critic.steps=40", "critic.hidden=[8]"),
    "critic=rebrac": ("critic.steps=40", "critic.hidden=[8]"),
    "baseline=iql": ("baseline.steps=10",),
    "evaluate": ("evaluation.max_steps=4",),
    "analysis=prediction": ("dataset.steps=600", *PREDICTION),
    "analysis=attention": ("dataset.steps=1000", "analysis.windows=6", "analysis.batch_size=4", "logger=csv"),
    "report": ("report.resamples=100",),
}


def write_own_episodes(folder: Path) -> None:
    folder.mkdir()
    env = gymnasium.make("Swimmer-v5")
    for seed in range(3):
        env.action_space.seed(seed)
        observations, actions, rewards = [env.reset(seed=seed)[0]], [], []
        for _ in range(30):
            actions.append(env.action_space.sample())
            observation, reward, *_ = env.step(actions[-1])
            observations, rewards = [*observations, observation], [*rewards, reward]
        path = folder / f"{seed}.npz"
        np.savez(path, observations=observations, actions=np.array(actions), rewards=rewards, terminated=[False])
    env.close()


def test_every_command_of_the_readme_runs(tmp_path: Path) -> None:
    write_own_episodes(tmp_path / "FOLDER")
    ended = np.arange(300) % 20 == 19
    columns = {name: np.random.default_rng(0).normal(size=(300, 2)) for name in ("observations", "actions")}
    write_d4rl(
        tmp_path / "logged.hdf5", {**columns, "rewards": np.arange(300) % 7, "terminals": ended, "timeouts": ended}
    )
    assert len(COMMANDS) >= 16
    for number, (main, arguments) in enumerate(COMMANDS):
        trained = sorted((tmp_path / "outputs" / "train" / "hopper").glob("*/results.json"))
        words = shlex.split(arguments.replace("FOLDER/last.ckpt", f"{trained[0].parent}/last.ckpt" if trained else ""))
        fewer = [word.replace("seed=0,1,2", "seed=0") for word in words]
        small = [override for key in (main, *words) for override in SMALL.get(key, ())]
        if number and main in ("train", "evaluate"):  # the first draws its episode, and logs as by default
            small += ["evaluation.video=false", "logger=csv"]
        taken = {word.partition("=")[0] for word in words}
        process = run_main(main, *fewer, *(one for one in small if one.partition("=")[0] not in taken), folder=tmp_path)
        assert process.returncode == 0, (main, arguments, process.stderr)
    trainings = list((tmp_path / "outputs" / "train").rglob("results.json"))
    trained = [(main, arguments) for main, arguments in COMMANDS if main == "train"]
    assert len(trainings) == len(trained) + 1  # the sweep has two jobs
    results = [json.loads(path.read_text()) for path in trainings]
    assert all(each.get("episodes") or each["recorded_episodes"] for each in results)
    assert (tmp_path / "my_model").is_dir()
    for name in ("evaluate", "analyze", "report"):
        assert list((tmp_path / "outputs" / name).rglob("*.json")), name
