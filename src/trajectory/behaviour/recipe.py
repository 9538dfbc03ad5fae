"""The recipe that trained the shipped behaviour policies: TRPO from sb3-contrib, the optional extra `behaviour`.

Never imported at run time; `python src/train_behaviour.py env=hopper` is its command.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from trajectory.behaviour.policy import GaussianPolicy


def train_behaviour(
    env_id: str,
    folder: Path,
    *,
    seed: int,
    steps: int,
    snapshot_steps: int,
    environments: int,
    hidden: tuple[int, ...],
    evaluation_episodes: int,
) -> list[dict[str, float | str]]:
    """Train with TRPO and write a snapshot of the policy every `snapshot_steps` environment steps.

    Each snapshot is a safetensors file under `folder`, named by its step, beside an `index.json` that lists
    step, return of the stochastic policy (mean, std) and return of its mean action over `evaluation_episodes`.

    Raises:
        ImportError: sb3-contrib is not installed (`pip install -e '.[behaviour]'`).
    """
    from sb3_contrib import TRPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    folder.mkdir(parents=True, exist_ok=True)
    venv = VecNormalize(make_vec_env(env_id, n_envs=environments, seed=seed), gamma=0.99)
    model = TRPO(
        "MlpPolicy",
        venv,
        seed=seed,
        device="cpu",
        n_steps=4096 // environments,
        batch_size=256,
        gamma=0.99,
        gae_lambda=0.95,
        cg_max_steps=25,
        cg_damping=0.1,
        n_critic_updates=10,
        learning_rate=1e-3,
        sub_sampling_factor=1,
        policy_kwargs={"net_arch": list(hidden)},
    )
    index: list[dict[str, float | str]] = []

    class Snapshots(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            if self.num_timesteps < len(index) * snapshot_steps:
                return
            policy = _export(model, venv, env_id, self.num_timesteps, seed)
            scores = evaluate_policy(policy, env_id, evaluation_episodes, seed=10_000 + seed)
            name = f"step_{self.num_timesteps:08d}.safetensors"
            policy.save(folder / name)
            index.append({"file": name, "step": self.num_timesteps, **scores})
            (folder / "index.json").write_text(json.dumps(index, indent=1))
            print(index[-1], flush=True)

    model.learn(steps, callback=Snapshots())
    venv.close()
    return index


def evaluate_policy(policy: GaussianPolicy, env_id: str, episodes: int, *, seed: int) -> dict[str, float]:
    """Undiscounted returns of the stochastic policy and of its mean action, each over `episodes` episodes."""
    env: Any = gymnasium.make(env_id)
    rng = np.random.default_rng(seed)
    scores: dict[str, float] = {}
    for name, scale in (("stochastic", 1.0), ("deterministic", 0.0)):
        returns = []
        for episode in range(episodes):
            observation, _ = env.reset(seed=seed + episode)
            total, done = 0.0, False
            while not done:
                noise = scale * rng.standard_normal((1, len(policy.log_std)))
                action = np.clip(policy.act(observation[None], noise)[0], env.action_space.low, env.action_space.high)
                observation, reward, terminated, truncated, _ = env.step(action)
                total += float(reward)
                done = terminated or truncated
            returns.append(total)
        scores[f"{name}_return_mean"] = float(np.mean(returns))
        scores[f"{name}_return_std"] = float(np.std(returns))
    env.close()
    return scores


def _export(model: Any, venv: Any, env_id: str, step: int, seed: int) -> GaussianPolicy:
    """The current SB3 policy and its observation statistics as a `GaussianPolicy`."""
    state = {name: value.detach().numpy() for name, value in model.policy.state_dict().items()}
    hidden = [f"mlp_extractor.policy_net.{2 * layer}" for layer in range(len(model.policy.net_arch))]
    layers = [*hidden, "action_net"]
    return GaussianPolicy(
        observation_mean=venv.obs_rms.mean.copy(),
        observation_std=np.sqrt(venv.obs_rms.var + venv.epsilon),
        weights=tuple(state[f"{layer}.weight"].T for layer in layers),
        biases=tuple(state[f"{layer}.bias"] for layer in layers),
        log_std=state["log_std"],
        metadata={
            "environment": env_id,
            "algorithm": "TRPO",
            "steps": str(step),
            "seed": str(seed),
            "versions": json.dumps({name: version(name) for name in ("sb3-contrib", "gymnasium", "mujoco", "torch")}),
        },
    )
