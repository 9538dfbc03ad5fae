"""What an import finds, and the checkpoint of this project that it becomes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trajectory.data.discretizer import Discretizer
from trajectory.environments.make import check_layout, make_environment
from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import UserError, first_line, require
from trajectory.foreign.settings import ImportSettings
from trajectory.model.checkpoint import EDGES, check_gpt_sizes
from trajectory.model.gpt import GPT
from trajectory.model.settings import GPTSettings
from trajectory.planning.settings import PlannerSettings, planner_as_dict, trained_planner
from trajectory.transition import TransitionLayout


@dataclass(frozen=True)
class Imported:
    """A trained model of another project, in this project's names.

    Args:
        weights: of a `GPT`.
        edges: (D, N + 1) float64, of the bins.
        discretizer: which gives the other project's tokens.
        task: of its data, such as `hopper-medium-v2`; None if its files do not say.
        discount, terminal_reward: of its tokeniser.
        planner: the settings that its code plans with.
        origin: `source`, and what else an export needs; plain values.
    """

    layout: TransitionLayout
    model: GPTSettings
    weights: dict[str, Tensor]
    edges: Tensor
    discretizer: Discretizer
    task: str | None
    discount: float
    terminal_reward: float | None
    planner: PlannerSettings
    origin: dict[str, Any]

    def gpt(self, dtype: torch.dtype = torch.float32) -> GPT:
        """The model, in evaluation mode.

        Raises:
            UserError: weights of other sizes than the configuration's.
        """
        try:
            check_gpt_sizes(self.model, self.layout, self.weights)
            gpt = GPT(self.model, self.layout).to(dtype)
            gpt.load_state_dict(self.weights)
        except (
            RuntimeError,
            ValueError,
            KeyError,
            AttributeError,
        ) as error:  # torch lists every name below its first line
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"path must hold weights of the sizes that its configuration gives: {reason}") from error
        return gpt.eval()


def as_checkpoint(found: Imported, settings: ImportSettings) -> dict[str, Any]:
    """The content of a checkpoint that can be evaluated.

    Raises:
        UserError: an environment of other sizes or of another task, or a planner that does not fit the model.
    """
    environment = settings.environment
    require(0 <= found.discount <= 1, "path", "a folder of a model with a discount from 0 to 1", found.discount)
    require(environment.has_simulator, "env", "one with a simulator, such as env=hopper", "none")
    source_name = f"path={settings.path}"
    env = make_environment(environment)
    check_layout(env, found.layout, source_name)
    env.close()
    _check_task(found.task, environment)
    planner = trained_planner(asdict(found.planner), settings.planner, source_name)
    if isinstance(planner, PlannerSettings):
        planner.check_window(found.model.window)
        rule = "model: what is imported has no critic"
        planner.check_critic(has_critic=False, rule=rule)
    state = {f"gpt.{name}": value for name, value in found.gpt().state_dict().items()}
    state |= {f"discretizer.{name}": value for name, value in found.discretizer.state_dict().items()}
    task = found.task or environment.name
    return {
        "state_dict": {**state, EDGES: found.edges},
        "hyper_parameters": {
            "layout": asdict(found.layout),
            "model": asdict(found.model),
            "optimizer": {},
            "tokenizer": {
                "binning": "quantile",
                "bins": found.model.bins,
                "discount": found.discount,
                "terminal_reward": found.terminal_reward,
            },
            "environment": asdict(environment),
            "dataset": {"id": f"d4rl/{task}", "source": settings.source, "requested": {}},
            "planner": planner_as_dict(planner),
            "critic": None,
            "imported": found.origin,
        },
        "global_step": 0,
    }


def _check_task(task: str | None, environment: EnvironmentSettings) -> None:
    """HalfCheetah and Walker2d have the same sizes: the name of the data tells them apart."""
    kind = (task or "").partition("-")[0].lower()
    rule = f"of {kind}, on whose data ({task}) the model was trained"
    require(environment.name.lower().startswith(kind), "env", rule, environment.name)


def of_names(state: Mapping[str, Any], names: Mapping[str, str], blocks: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of a state with other names.

    Args:
        names, blocks: old to new names of modules, outside blocks and in each block; others are left out.
    """
    found = {}
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        if name.startswith("blocks."):
            _, number, inner = [*module.split(".", 2), ""][:3]
            if inner in blocks:
                found[f"blocks.{number}.{blocks[inner]}.{kind}"] = value
        elif module in names:
            found[f"{names[module]}.{kind}"] = value
        elif name in names:
            found[names[name]] = value
    return found


def config_values(values: Mapping[str, Any], keys: Mapping[str, type | tuple[type, ...]], name: str) -> dict[str, Any]:
    """The values of some keys of a foreign configuration.

    Args:
        keys: with the types that are taken.

    Raises:
        UserError: a key that is missing or has a value of another type, or a number that is not finite.
    """
    found = {}
    for key, kind in keys.items():
        value = values.get(key)
        finite = not isinstance(value, float) or math.isfinite(value)
        valid = isinstance(value, kind) and not isinstance(value, bool) and finite
        require(valid, f"{name}: {key}", "given, as that project writes it", value)
        found[key] = value
    return found


def model_layout(model: Mapping[str, Any], key: str) -> TransitionLayout:
    """The layout of a foreign model's tokens.

    Args:
        model: its configuration.
        key: of the number of tokens in it.

    Raises:
        UserError: another number than that of this layout.
    """
    layout = TransitionLayout(model["observation_dim"], model["action_dim"])
    sizes = f"{layout.observation_dim} + {layout.action_dim} + 2, of observation, action, reward and value"
    require(model["transition_dim"] == layout.transition_dim, key, sizes, model["transition_dim"])
    return layout


def model_settings(**values: Any) -> GPTSettings:
    """The architecture that both projects have: absolute positions, and value tokens in the residual stream.

    Raises:
        UserError: sizes that no model can have.
    """
    try:
        return GPTSettings(positions="absolute", value_residual=True, **values)
    except UserError as error:
        raise UserError(f"path must hold a model that can be: {first_line(error)}") from error


def the_file(folder: Path, chosen: str | None, pattern: str) -> Path:
    """The file of weights: the one named, else the one of the last epoch.

    Args:
        pattern: of their names, with a star for the number of the epoch.

    Raises:
        UserError: it is not there.
    """
    if chosen is not None:
        require((folder / chosen).is_file(), "weights", f"null or a file in {folder}", chosen)
        return folder / chosen
    start, _, end = pattern.partition("*")
    numbered = []
    for path in folder.glob(pattern):
        number = path.name.removeprefix(start).removesuffix(end)
        rank = {"last": 2, "best": 1}.get(number, 0)  # as a name says more than a number
        if rank or number.isdigit():
            numbered.append((rank, 0 if rank else int(number), path))
    require(bool(numbered), "path", f"a folder with a file {pattern}", str(folder))
    return max(numbered)[2]
