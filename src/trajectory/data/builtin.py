"""The built-in datasets: recorded on first use from the shipped behaviour policies."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trajectory.behaviour.controllers import CONTROLLERS, IDS
from trajectory.behaviour.policy import GaussianPolicy
from trajectory.behaviour.record import BehaviourPolicy, record_episodes
from trajectory.data.store import dataset_lock, in_store, save_episodes
from trajectory.environments.make import make_environment
from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import require

POLICIES = Path(__file__).parent.parent / "behaviour" / "policies"
DEFAULT_STEPS = 200_000
DEFAULT_SEED = 0
CODE_LINK = "src/trajectory/behaviour/record.py of the Trajectory Transformer experiment framework"
MIXTURES = {  # quality -> the policies that record equal parts of it, by file name
    "medium": ["medium"],
    "medium-replay": ["replay_*"],
    "medium-expert": ["medium", "expert"],
    "expert": ["expert"],
}


def _folder(environment: str) -> str:
    """Its name as that of a folder, which leads nowhere else."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", environment)


def builtin_id(environment: str, quality: str, steps: int = DEFAULT_STEPS, seed: int = DEFAULT_SEED) -> str:
    """Such as `trajectory/hopper/medium-v0`. Another size or seed makes another dataset, and shows in the name."""
    name = quality
    if steps != DEFAULT_STEPS:
        name += f"-steps{steps}"
    if seed != DEFAULT_SEED:
        name += f"-seed{seed}"
    return f"trajectory/{_folder(environment)}/{name}-v0"


def policy_files(environment: str, quality: str) -> list[Path]:
    """The shipped policies that record a quality, in order; none if the environment lacks one of them."""
    found = [
        sorted((POLICIES / _folder(environment)).glob(f"{name}.safetensors")) for name in MIXTURES.get(quality, [])
    ]
    return [path for paths in found for path in paths] if all(found) else []


def qualities(environment: str) -> list[str]:
    """The qualities that can be recorded: `random`, and those with shipped policies or controllers."""
    mixtures = [quality for quality in MIXTURES if policy_files(environment, quality)]
    return ["random", *mixtures, *CONTROLLERS.get(environment, {})]


def ensure_builtin(environment: EnvironmentSettings, quality: Any, *, steps: int, seed: int) -> str:
    """The id of a built-in dataset, which is recorded now unless the local store has it.

    With wrappers, the id depends on their names and arguments, not on their code.

    Raises:
        UserError: an unknown quality, or an environment other than the one its policies were trained in.
    """
    name = environment.name
    rule = "own, minari or d4rl with env=none: built-in datasets are recorded in a simulator"
    require(environment.has_simulator, "dataset", rule, "builtin")
    assert environment.id is not None
    allowed = qualities(name)
    require(quality in allowed, "dataset.quality", f"one of {', '.join(allowed)} for env={name}", quality)
    rule = f"[] with dataset.quality={quality}, whose policy acts in the environment as it is; random takes wrappers"
    require(not environment.wrappers or quality == "random", "env.wrappers", rule, environment.wrappers)
    is_policy = bool(policy_files(name, quality))
    rule = f"1 with dataset.quality={quality}, whose policy acts at every step"
    require(environment.action_repeat == 1 or not is_policy, "env.action_repeat", rule, environment.action_repeat)
    make_environment(environment).close()
    shipped = sorted((POLICIES / _folder(name)).glob("*.safetensors"))
    for policy in map(GaussianPolicy.load, shipped[:1]):
        trained_in = policy.metadata["environment"]
        require(environment.id == trained_in, "env.id", f"{trained_in} for env={name}", environment.id)
        kwargs = json.loads(policy.metadata.get("environment_kwargs", "{}"))
        rule = f"{kwargs} with dataset=builtin, as the policies of env={name} were trained"
        require(environment.kwargs == kwargs, "env.kwargs", rule, environment.kwargs)
    if environment.id != IDS.get(name, environment.id):  # for example another maze
        name += "-" + environment.id.rpartition(":")[2]
    changes: list[Any] = [environment.kwargs] if environment.kwargs and not shipped else []
    changes += environment.wrappers
    if changes:  # other arguments give other data
        text = json.dumps(changes[0] if len(changes) == 1 else changes, sort_keys=True)
        name += "-" + hashlib.sha256(text.encode()).hexdigest()[:8]
    if environment.action_repeat > 1:
        name += f"-repeat{environment.action_repeat}"
    dataset_id = builtin_id(name, quality, steps, seed)
    if in_store(dataset_id):
        return dataset_id
    with dataset_lock(dataset_id):
        if not in_store(dataset_id):
            _record(dataset_id, environment, quality, steps, seed)
    return dataset_id


def _record(dataset_id: str, environment: EnvironmentSettings, quality: str, steps: int, seed: int) -> None:
    policies = [GaussianPolicy.load(path) for path in policy_files(environment.name, quality)]
    recorders: Sequence[BehaviourPolicy] = policies or [None]
    recorded_by: Any = [policy.metadata for policy in policies] or "uniform over the action space"
    name = describe(policies)
    controller = CONTROLLERS.get(environment.name, {}).get(quality)
    if controller is not None:
        recorders, name = [controller], controller.description
        recorded_by = f"{controller.__name__} of this project"
    provenance = {
        "steps": steps,
        "seed": seed,
        "policies": recorded_by,
        "versions": {package: version(package) for package in ("gymnasium", "mujoco", "numpy")},
    }
    save_episodes(
        dataset_id,
        record_episodes(environment, recorders, steps=steps, seed=seed),
        environment,
        algorithm_name=name,
        author="Trajectory Transformer experiment framework",
        code_permalink=CODE_LINK,
        description=(
            f"{quality} quality on {environment.id}, recorded locally; not a D4RL dataset. "
            f"Provenance: {json.dumps(provenance)}"
        ),
    )


def describe(policies: list[GaussianPolicy]) -> str:
    """The behaviour policy in one line, such as `TRPO after 151,552 steps, stochastic`."""
    if not policies:
        return "uniform random actions"
    steps = [f"{int(policy.metadata['steps']):,}" for policy in policies]
    when = f"{len(steps)} snapshots from {steps[0]} to {steps[-1]}" if len(steps) > 2 else " and ".join(steps)
    return f"{policies[0].metadata['algorithm']} after {when} steps, stochastic"
