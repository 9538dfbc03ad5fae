"""The built-in datasets: recorded on first use from the shipped behaviour policies."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

from trajectory.behaviour.policy import GaussianPolicy
from trajectory.behaviour.record import record_episodes
from trajectory.data.store import in_store, save_episodes
from trajectory.errors import require

POLICIES = Path(__file__).parent.parent / "behaviour" / "policies"
DEFAULT_STEPS = 200_000
DEFAULT_SEED = 0
CODE_LINK = "src/trajectory/behaviour/record.py of the Trajectory Transformer experiment framework"


def builtin_id(environment: str, quality: str, steps: int = DEFAULT_STEPS, seed: int = DEFAULT_SEED) -> str:
    """`trajectory/hopper/medium-v0`; another size or seed is another dataset and shows in its name."""
    name = quality
    if steps != DEFAULT_STEPS:
        name += f"-steps{steps}"
    if seed != DEFAULT_SEED:
        name += f"-seed{seed}"
    return f"trajectory/{environment}/{name}-v0"


def qualities(environment: str) -> list[str]:
    """The qualities that can be recorded for an environment: random, and one per shipped policy."""
    return ["random", *sorted(path.stem for path in (POLICIES / environment).glob("*.safetensors"))]


def ensure_builtin(
    environment: str, env_id: str, quality: str, *, steps: int, seed: int, reference: dict[str, float] | None
) -> str:
    """The id of a built-in dataset, recorded now if the local store does not have it.

    Args:
        environment: its short name (hopper), which names the shipped policies' folder.
        env_id: its Gymnasium id (Hopper-v5).
        reference: `random` and `expert` reference returns, stored as Minari's reference scores; None for none.

    Raises:
        UserError: an unknown quality, or a number of steps or seed that is not a whole number in range.
    """
    known = qualities(environment)
    require(quality in known, "dataset.quality", f"one of {', '.join(known)} for env={environment}", quality)
    require(isinstance(steps, int) and steps >= 1, "dataset.steps", "a whole number of at least 1", steps)
    require(isinstance(seed, int) and seed >= 0, "dataset.seed", "a whole number of at least 0", seed)
    dataset_id = builtin_id(environment, quality, steps, seed)
    policies = POLICIES / environment
    recorded_on = {GaussianPolicy.load(path).metadata["environment"] for path in policies.glob("*.safetensors")}
    require(
        not recorded_on or env_id in recorded_on, "env.id", f"{', '.join(recorded_on)} for env={environment}", env_id
    )
    if in_store(dataset_id):
        return dataset_id
    policy = None if quality == "random" else GaussianPolicy.load(policies / f"{quality}.safetensors")
    episodes = record_episodes(env_id, policy, steps=steps, seed=seed)
    provenance = {
        "steps": steps,
        "seed": seed,
        "policy": policy.metadata if policy else "uniform over the action space",
        "versions": {name: version(name) for name in ("gymnasium", "mujoco", "numpy")},
    }
    save_episodes(
        dataset_id,
        episodes,
        env_id,
        algorithm_name=f"{policy.metadata['algorithm']}, stochastic" if policy else "uniform random actions",
        author="Trajectory Transformer experiment framework",
        code_permalink=CODE_LINK,
        ref_min_score=reference["random"] if reference else None,
        ref_max_score=reference["expert"] if reference else None,
        description=(
            f"{quality} quality on {env_id}, recorded locally; not a D4RL dataset. Provenance: {json.dumps(provenance)}"
        ),
    )
    return dataset_id
