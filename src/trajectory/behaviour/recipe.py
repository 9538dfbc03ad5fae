"""The recipe that trained the shipped behaviour policies, with a library of the optional extra `behaviour`.

Only the command `python src/train_behaviour.py env=walker2d` imports it.
"""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from trajectory.behaviour.policy import GaussianPolicy
from trajectory.behaviour.settings import RecipeSettings
from trajectory.imports import optional_import

MEDIUM_RATIO = 0.42  # of the expert's return: the middle of "a third to a half"


def train_behaviour(env_id: str, env_kwargs: dict[str, Any], folder: Path, settings: RecipeSettings) -> dict[str, Any]:
    """Train with a snapshot every `snapshot_steps` environment steps, and choose the snapshots to ship.

    In `folder`, `snapshots/` gets a safetensors file per snapshot and an `index.json` with the policy's returns (mean
    and standard deviation, with and without noise). `policies/` gets the chosen ones, under the names that
    `trajectory.data.builtin` uses.

    Returns:
        The index entries that were chosen: `expert`, `medium` and `replay`.

    Raises:
        UserError: sb3-contrib is not installed, or broken.
    """
    with optional_import("training behaviour policies", "behaviour"):
        from sb3_contrib import TRPO
        from stable_baselines3 import SAC
        from stable_baselines3.common.callbacks import BaseCallback
        from stable_baselines3.common.env_util import make_vec_env
        from stable_baselines3.common.vec_env import VecNormalize

    snapshots = folder / "snapshots"
    snapshots.mkdir(parents=True, exist_ok=True)
    venv = make_vec_env(env_id, n_envs=settings.environments, seed=settings.seed, env_kwargs=env_kwargs)
    if settings.algorithm == "TRPO":
        venv = VecNormalize(venv, gamma=settings.arguments.get("gamma", 0.99))
    model = {"TRPO": TRPO, "SAC": SAC}[settings.algorithm](
        "MlpPolicy",
        venv,
        seed=settings.seed,
        device="cpu",
        policy_kwargs={"net_arch": list(settings.hidden)},
        **settings.arguments,
    )
    provenance = {
        "environment": env_id,
        "environment_kwargs": json.dumps(env_kwargs),
        "algorithm": settings.algorithm,
        "seed": str(settings.seed),
        "versions": json.dumps({name: version(name) for name in ("sb3-contrib", "gymnasium", "mujoco", "torch")}),
    }
    index: list[dict[str, Any]] = []

    class Snapshots(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            if self.num_timesteps >= len(index) * settings.snapshot_steps:
                self.save()

        def _on_training_end(self) -> None:
            self.save()

        def save(self) -> None:
            policy = _export(model, venv, {**provenance, "steps": str(self.num_timesteps)})
            scores = evaluate_policy(policy, settings.evaluation_episodes, seed=10_000 + settings.seed)
            name = f"step_{self.num_timesteps:08d}.safetensors"
            policy.save(snapshots / name)
            index.append({"file": name, "step": self.num_timesteps, **scores})
            (snapshots / "index.json").write_text(json.dumps(index, indent=1))
            print(index[-1], flush=True)

    model.learn(settings.steps, callback=Snapshots())
    venv.close()
    chosen = choose(index, settings.replay_policies)
    policies = folder / "policies"
    policies.mkdir(exist_ok=True)
    for name in ("expert", "medium"):
        shutil.copy(snapshots / chosen[name]["file"], policies / f"{name}.safetensors")
    for number, entry in enumerate(chosen["replay"]):
        shutil.copy(snapshots / entry["file"], policies / f"replay_{number:02d}.safetensors")
    return chosen


def choose(index: list[dict[str, Any]], replay_policies: int) -> dict[str, Any]:
    """Choose the shipped policies among the snapshots, by the mean return of the policy with noise.

    Expert is the best. Medium is the one before it whose return is nearest to `MEDIUM_RATIO` of the expert's. Replay
    are at most `replay_policies`, evenly spaced from the untrained policy to medium, both included.
    """

    def score(entry: dict[str, Any]) -> float:
        return entry["stochastic_return_mean"]

    best = max(range(len(index)), key=lambda position: score(index[position]))
    target = MEDIUM_RATIO * score(index[best])
    medium = min(range(best + 1), key=lambda position: abs(score(index[position]) - target))
    positions = np.unique(np.linspace(0, medium, min(replay_policies, medium + 1)).round().astype(int))
    return {"expert": index[best], "medium": index[medium], "replay": [index[position] for position in positions]}


def evaluate_policy(policy: GaussianPolicy, episodes: int, *, seed: int) -> dict[str, float]:
    """Undiscounted returns of a policy with and without noise, over `episodes` episodes each."""
    kwargs = json.loads(policy.metadata.get("environment_kwargs", "{}"))
    env: Any = gymnasium.make(policy.metadata["environment"], **kwargs)
    rng = np.random.default_rng(seed)
    scores: dict[str, float] = {}
    for name, scale in (("stochastic", 1.0), ("deterministic", 0.0)):
        returns = []
        for episode in range(episodes):
            observation, _ = env.reset(seed=seed + episode)
            total, done = 0.0, False
            while not done:
                noise = scale * rng.standard_normal((1, policy.action_dim))
                action = np.clip(policy.act(observation[None], noise)[0], env.action_space.low, env.action_space.high)
                observation, reward, terminated, truncated, _ = env.step(action)
                total += float(reward)
                done = terminated or truncated
            returns.append(total)
        scores[f"{name}_return_mean"] = float(np.mean(returns))
        scores[f"{name}_return_std"] = float(np.std(returns))
    env.close()
    return scores


def _export(model: Any, venv: Any, metadata: dict[str, str]) -> GaussianPolicy:
    """The current SB3 policy as a `GaussianPolicy`: plain if observations are normalised, else squashed."""
    state = {name: value.detach().numpy() for name, value in model.policy.state_dict().items()}
    depth = len(model.policy.net_arch)
    if hasattr(venv, "obs_rms"):
        layers = [*(f"mlp_extractor.policy_net.{2 * layer}" for layer in range(depth)), "action_net"]
        weights = [state[f"{layer}.weight"].T for layer in layers]
        biases = [state[f"{layer}.bias"] for layer in layers]
        mean, std, log_std = venv.obs_rms.mean.copy(), np.sqrt(venv.obs_rms.var + venv.epsilon), state["log_std"]
    else:
        layers = [f"actor.latent_pi.{2 * layer}" for layer in range(depth)]
        heads = ("actor.mu", "actor.log_std")
        weights = [state[f"{name}.weight"].T for name in layers]
        weights.append(np.concatenate([state[f"{head}.weight"].T for head in heads], axis=1))
        biases = [state[f"{name}.bias"] for name in layers]
        biases.append(np.concatenate([state[f"{head}.bias"] for head in heads]))
        size = len(weights[0])
        mean, std, log_std = np.zeros(size), np.ones(size), None
    return GaussianPolicy(mean, std, tuple(weights), tuple(biases), log_std, metadata)
