"""The real files of conf/: every one composes, resolves and fits its settings; their values are the published ones."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from helpers.command_line import CONF, compose_config, compose_whole, section
from trajectory.baselines.settings import BCSettings, baseline_settings
from trajectory.behaviour.settings import RecipeSettings
from trajectory.config import settings
from trajectory.data.builtin import DEFAULT_SEED, DEFAULT_STEPS
from trajectory.data.settings import DataSettings, HindsightSettings, TokenizerSettings
from trajectory.environments.settings import environment_settings
from trajectory.evaluation.settings import EvaluationSettings
from trajectory.loggers.settings import TensorBoardSettings, WandbSettings, logger_settings
from trajectory.model.settings import GPTSettings, OptimizerSettings
from trajectory.planning.settings import PlannerSettings
from trajectory.training.settings import DeviceSettings, RuntimeSettings, TrainerSettings

MAINS = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "wandb_sweep")
SECTIONS = {
    "planner": PlannerSettings,
    "tokenizer": TokenizerSettings,
    "hindsight": HindsightSettings,
    "evaluation": EvaluationSettings,
    "data": DataSettings,
    "runtime": RuntimeSettings,
    "trainer": TrainerSettings,
    "baseline": BCSettings,
    "model": GPTSettings,
    "model.optimizer": OptimizerSettings,
}

MANDATORY = {  # what an option leaves to be given
    "minari": ("dataset.id=some/dataset-v0",),
    "d4rl": ("dataset.path=some.hdf5",),
    "mixture": ("dataset.parts=[{quality:random},{quality:medium}]",),
    "own": ("dataset.path=some", "dataset.id=some/dataset-v0"),
    "ddp": ("trainer.devices=2",),
    "fsdp": ("trainer.devices=2",),
    "gym": ("env.id=Swimmer-v5",),
}
NEEDED = {  # what a main does not choose by default
    "analyze": ("analysis=attention",),
    "import_checkpoint": ("source=jannerm", "path=some"),
    "export": ("checkpoint=last.ckpt", "to=folder"),
}
PARTIAL = ("analyze", "evaluate", "import_checkpoint")  # what they are not given is in what they read


def groups(main: str) -> list[str]:
    """The config groups that a main's defaults list names."""
    entries = OmegaConf.to_container(OmegaConf.load(CONF / f"{main}.yaml"))["defaults"]  # ty: ignore
    return [key.removeprefix("optional ") for entry in entries if isinstance(entry, dict) for key in entry]


def choices() -> list[tuple[str, str, str]]:
    """(main, group, option) for every option that a main can be given.

    from_checkpoint is for commands that read one, held_out for analyze, and not every environment has a recipe.
    """
    recipes = {path.stem for path in (CONF / "behaviour").glob("*.yaml")}
    alone = {
        "env/from_checkpoint": ("evaluate", "analyze"),
        "planner/from_checkpoint": ("evaluate", "import_checkpoint"),
        "dataset/held_out": ("analyze",),
    }
    return [
        (main, group, path.stem)
        for main in MAINS
        for group in groups(main)
        for path in sorted((CONF / group).glob("*.yaml"))
        if main in alone.get(f"{group}/{path.stem}", (main,))
        and (main != "train_behaviour" or group == "hydra" or path.stem in recipes)
        and ((group, path.stem) != ("search", "laptop") or main == "train")
    ]


def instantiate(config: DictConfig) -> dict[str, object]:
    """The settings dataclass of every section that a config has."""
    return {
        key: baseline_settings(section(config, key)) if key == "baseline" else settings(cls, section(config, key), key)
        for key, cls in {**SECTIONS, "runtime": RuntimeSettings if "trainer" in config else DeviceSettings}.items()
        if OmegaConf.select(config, key) is not None
    }


def plain(instance: Any) -> Any:
    """A settings dataclass as JSON has it, tuples and lists alike."""
    return json.loads(json.dumps(asdict(instance)))


@pytest.fixture(scope="module")
def train_config() -> DictConfig:
    return compose_config("train", "baseline=bc")


@pytest.mark.parametrize(("main", "group", "option"), choices())
def test_every_option_composes_resolves_and_instantiates(main: str, group: str, option: str) -> None:
    needed = [each for each in NEEDED.get(main, ()) if not each.startswith(f"{group}=")]
    config = compose_config(main, f"{group}={option}", *MANDATORY.get(option, ()), *needed)
    OmegaConf.to_container(config, resolve=True, throw_on_missing=main not in PARTIAL)
    expected = {key for key in SECTIONS if OmegaConf.select(config, key) is not None}
    assert instantiate(config).keys() == expected
    if "env" in config and main not in ("analyze", "evaluate"):
        assert environment_settings(config.env).id == config.env.id


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("planner.horizon=3", "evaluation.goal=[1.0, 2]", "logger.wandb.project='a b=c'"),
        ("env=walker2d", "seed=3", "model.n_embd=8", "data.batch_size=${model.n_embd}"),
        ("planner.horizon=7", "experiment=laptop"),  # an option that comes after a value
        ("model.n_embd=8", "~model.n_head", "+model.new=1"),
    ],
)
def test_tests_compose_what_hydra_composes(overrides: tuple[str, ...]) -> None:
    """Those that set values in a config that is kept."""
    for _ in range(2):
        found, expected = compose_config("train", *overrides), compose_whole("train", *overrides)
        assert found == expected
        assert OmegaConf.to_yaml(found) == OmegaConf.to_yaml(expected)
        OmegaConf.resolve(found)  # one that is changed is not the one that is kept


@pytest.mark.parametrize("override", ["planner.nosuch=1", "planner.horizon=[1", "planner.horizon=1,2", "nosuch.key=1"])
def test_tests_are_refused_what_hydra_refuses(override: str) -> None:
    said = []
    for one in (compose_config, compose_whole):
        with pytest.raises(HydraException) as error:
            one("train", "env=hopper", override)
        said.append((type(error.value), str(error.value)))
    assert said[0] == said[1]


def test_every_file_of_conf_is_an_option_of_a_main() -> None:
    reached = {CONF / group / f"{option}.yaml" for _, group, option in choices()}
    assert set(CONF.glob("*/*.yaml")) == reached


@pytest.mark.parametrize("main", MAINS)
def test_every_main_has_a_script_and_resolves_as_it_stands(main: str) -> None:
    assert (CONF.parent / "src" / f"{main}.py").is_file()
    config = compose_config(main, *NEEDED.get(main, ()))
    OmegaConf.resolve(config)
    assert config.debug is False


@pytest.mark.parametrize("main", MAINS)
def test_every_main_names_its_run_folder_by_what_it_has(main: str) -> None:
    """Hydra's own values are there when a process begins, all others must be keys of the config."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(main, list(NEEDED.get(main, ())), return_hydra_config=True)
    folder = OmegaConf.to_container(config.hydra.run)["dir"]  # ty: ignore
    keys = [key for key in re.findall(r"\$\{([\w.]+)\}", folder) if not key.startswith("hydra.")]
    assert all(OmegaConf.select(config, key) is not None for key in keys), folder
    assert "outputs/" in folder


@pytest.mark.parametrize("key", SECTIONS)
def test_defaults_of_conf_and_dataclass_are_the_same_keys_and_values(key: str, train_config: DictConfig) -> None:
    cls = SECTIONS[key]
    values = section(train_config, key)
    assert values.keys() == {field.name for field in fields(cls)}
    assert plain(settings(cls, values, key)) == plain(cls())


def test_options_differ_from_the_default_only_where_they_say_so() -> None:
    default = compose_config("train")
    uniform = compose_config("train", "tokenizer=uniform")
    assert uniform.tokenizer == {**default.tokenizer, "binning": "uniform"}
    assert list(logger_settings(compose_config("train", "logger=csv").logger)) == ["csv"]
    both = logger_settings(compose_config("train", "logger=[wandb,tensorboard]").logger)
    assert both == {"wandb": WandbSettings(), "tensorboard": TensorBoardSettings()}


def test_settings_from_a_checkpoint_leave_out_every_key_that_training_has() -> None:
    def keys(values: Any) -> Any:
        return {key: keys(value) for key, value in values.items()} if isinstance(values, dict) else None

    trained: Any = OmegaConf.to_container(compose_config("train"))
    asked: Any = OmegaConf.to_container(compose_config("evaluate"))
    assert keys(asked["planner"]) == keys(trained["planner"])
    assert asked["env"].keys() == trained["env"].keys()

    def leaves(values: Any) -> list[Any]:
        return [leaf for value in values.values() for leaf in leaves(value)] if isinstance(values, dict) else [values]

    assert set(leaves(asked["planner"])) == {"???"}


def test_defaults_are_the_published_ones(train_config: DictConfig) -> None:
    model = {"n_layer": 4, "n_head": 4, "n_embd": 128, "window": 10, "value_residual": False}
    assert {key: train_config.model[key] for key in model} == model
    assert {train_config.model[f"{place}_dropout"] for place in ("embedding", "residual", "attention")} == {0.1}
    optimizer = {"learning_rate": 6e-4, "betas": [0.9, 0.95], "weight_decay": 0.1, "action_weight": 5.0}
    assert {key: train_config.model.optimizer[key] for key in optimizer} == optimizer
    assert (train_config.model.optimizer.reward_weight, train_config.model.optimizer.value_weight) == (1.0, 1.0)
    assert (train_config.data.batch_size, train_config.trainer.gradient_clip_val) == (256, 1.0)
    assert train_config.trainer.max_steps == 50 * 1_000_000 // 256
    tokenizer = {
        "_target_": "trajectory.data.discretizer.Discretizer",
        "binning": "quantile",
        "bins": 100,
        "discount": 0.99,
        "terminal_reward": -100.0,
        "exact_rows": 10_000_000,
    }
    assert train_config.tokenizer == tokenizer
    planner = {"horizon": 15, "beam_width": 128, "expansion": 2, "context": 5, "discount": None}
    assert {key: train_config.planner[key] for key in planner} == planner
    assert train_config.planner.observation == {"top_k": 1, "top_p": None, "temperature": 1.0}
    assert train_config.planner.action == {"top_k": None, "top_p": 0.4, "temperature": 1.0}
    assert train_config.env.reference == {"random": -20.272305, "expert": 3234.3}
    assert (train_config.env.id, train_config.dataset.quality) == ("Hopper-v5", "medium")


def test_builtin_dataset_is_the_one_with_the_plain_name(train_config: DictConfig) -> None:
    assert (train_config.dataset.steps, train_config.dataset.seed) == (DEFAULT_STEPS, DEFAULT_SEED)


@pytest.mark.parametrize("env", ["hopper", "walker2d", "halfcheetah", "ant"])
def test_every_environment_has_a_recipe_of_its_own(env: str) -> None:
    config = compose_config("train_behaviour", f"env={env}")
    assert (CONF / "behaviour" / f"{env}.yaml").is_file()
    assert {str(key) for key in config.behaviour} == {field.name for field in fields(RecipeSettings)}
    recipe = settings(RecipeSettings, config.behaviour, "behaviour")
    assert recipe.steps == config.behaviour.steps
    assert recipe.arguments == OmegaConf.to_container(config.behaviour.arguments)


def test_any_environment_goes_by_its_id_unless_it_is_named() -> None:
    environment = compose_config("train", "env=gym", "env.id=Swimmer-v5").env
    assert (environment.name, environment.kwargs, environment.observation_keys) == ("Swimmer-v5", {}, None)
    assert compose_config("train", "env=gym", "env.id=Swimmer-v5", "env.name=fish").env.name == "fish"


def test_command_line_wins_over_experiment_and_experiment_over_environment_and_that_over_planner(
    tmp_path: Path,
) -> None:
    (tmp_path / "env").mkdir()
    planner = "planner: {beam_width: 5, horizon: 7, expansion: 3, context: 4}"
    (tmp_path / "env" / "own.yaml").write_text(f"# @package _global_\ndefaults: [hopper]\n{planner}\n")
    options = (f"hydra.searchpath=[file://{tmp_path}]", "env=own", "experiment=imitation")
    config = compose_config("train", *options, "planner.beam_width=64", "planner.context=1")
    imitation = OmegaConf.load(CONF / "experiment" / "imitation.yaml")
    assert (config.planner.beam_width, config.planner.context) == (64, 1)
    assert config.planner.horizon == imitation.planner.horizon
    assert config.planner.expansion == 3
    assert config.planner.action.top_p is None
    assert compose_config("train", *options[:2]).planner.horizon == 7


@pytest.mark.parametrize(
    ("main", "override"),
    [
        *((main, "nosuch.key=1") for main in MAINS),
        *((main, "debgu=true") for main in MAINS),
        *(("train", f"{key}.nosuch=1") for key in SECTIONS if key != "baseline"),
        ("train", "planner.beem_width=64"),
        ("train", "planner.action.top_q=0.5"),
        ("train", "dataset.qualty=expert"),
        ("train", "env=nosuch"),
        ("train", "experiment=nosuch"),
        ("train", "baseline=nosuch"),
        ("evaluate", "planner.beem_width=64"),
        ("evaluate", "planner.action.top_q=0.5"),
        ("evaluate", "chekpoint=last.ckpt"),
    ],
)
def test_misspelt_override_is_refused_by_hydra(main: str, override: str) -> None:
    with pytest.raises(HydraException, match=r"Could not (override|find)"):
        compose_config(main, *NEEDED.get(main, ()), override)
