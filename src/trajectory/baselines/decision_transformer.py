"""Decision Transformer (Chen et al. 2021): actions predicted from returns-to-go that are asked for, and the past."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from trajectory.baselines.settings import DecisionTransformerSettings
from trajectory.data.episodes import Episodes
from trajectory.files import write_file
from trajectory.networks import Normal
from trajectory.progress import progress_bar

STEPS = 3  # tokens of a transition: return-to-go, observation, action


class DecisionTransformer(nn.Module):
    """A causal Transformer over (return-to-go, observation, action) of successive steps.

    Args:
        longest: steps of an episode, each of which has an embedding.
        return_scale: that returns-to-go are divided by.
    """

    def __init__(
        self,
        settings: DecisionTransformerSettings,
        observations: Tensor,
        action_dim: int,
        longest: int,
        return_scale: float,
    ) -> None:
        super().__init__()
        C = settings.n_embd
        self.window = settings.window
        self.normal = Normal(observations)
        self.embed_return, self.embed_action = nn.Linear(1, C), nn.Linear(action_dim, C)
        self.embed_observation = nn.Linear(observations.shape[1], C)
        self.embed_step = nn.Embedding(longest, C)
        self.embedding_norm = nn.LayerNorm(C)
        layer = nn.TransformerEncoderLayer(
            C, settings.n_head, 4 * C, settings.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, settings.n_layer, nn.LayerNorm(C), enable_nested_tensor=False)
        self.head = nn.Linear(C, action_dim)
        self.register_buffer("return_scale", torch.tensor(return_scale))
        self.return_scale: Tensor

    def forward(self, returns: Tensor, observations: Tensor, actions: Tensor, steps: Tensor) -> Tensor:
        """(B, T, 1) returns-to-go, (B, T, O) observations, (B, T, A) actions at (B, T) steps -> (B, T, A) actions."""
        place = self.embed_step(steps.clamp(max=self.embed_step.num_embeddings - 1))
        tokens = torch.stack(
            [
                self.embed_return(returns / self.return_scale) + place,
                self.embed_observation(self.normal(observations)) + place,
                self.embed_action(actions) + place,
            ],
            dim=2,
        ).flatten(1, 2)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=tokens.device)
        hidden = self.blocks(self.embedding_norm(tokens), mask=mask, is_causal=True)
        return self.head(hidden[:, 1::STEPS]).tanh()


class DecisionTransformerAgent:
    """Asks for a return, and for what is left of it after every reward; as many steps of the past as in training."""

    def __init__(self, model: DecisionTransformer, target_return: float) -> None:
        self.model = model.eval()
        self.target_return = target_return
        self.reset()

    def reset(
        self, environments: int = 1, seeds: Sequence[int] | None = None, goals: np.ndarray | Sequence | None = None
    ) -> None:
        """Begin an episode in every environment; nothing is random."""
        self.steps = [0] * environments
        # per environment and step of the window: what is left of the return, the observation, and the action taken
        self.past: list[list[list[np.ndarray]]] = [[] for _ in range(environments)]

    @torch.inference_mode()
    def act(
        self,
        observation: np.ndarray,
        previous_reward: float | np.ndarray | None = None,
        environments: Sequence[int] | None = None,
    ) -> np.ndarray:
        """(observation_dim,) or (E, observation_dim) -> actions of the same leading shape."""
        running = range(len(self.past)) if environments is None else environments
        observations = np.atleast_2d(np.asarray(observation, dtype=np.float32))
        rewards = np.zeros(len(observations)) if previous_reward is None else np.atleast_1d(previous_reward)
        unknown = np.zeros(self.model.head.out_features, dtype=np.float32)  # no token looks at its own action
        for environment, seen, reward in zip(running, observations, rewards, strict=True):
            past = self.past[environment]
            left = past[-1][0] - reward if past else np.array([self.target_return])
            past.append([left.astype(np.float32), seen, unknown])
            del past[: -self.model.window]
        lengths = [len(self.past[environment]) for environment in running]
        actions = np.empty((len(observations), len(unknown)), dtype=np.float32)
        for length in sorted(set(lengths)):
            batch = [index for index, other in enumerate(lengths) if other == length]
            pasts = [self.past[running[index]] for index in batch]
            columns = [
                torch.from_numpy(np.array([[step[part] for step in past] for past in pasts])) for part in range(3)
            ]
            steps = (
                torch.tensor([self.steps[running[index]] for index in batch])[:, None]
                + torch.arange(length)
                + 1
                - length
            )
            actions[batch] = self.model(*columns, steps)[:, -1].numpy()
        for environment, action in zip(running, actions, strict=True):
            self.past[environment][-1][2] = action
            self.steps[environment] += 1
        return actions[0] if np.ndim(observation) == 1 else actions

    def save(self, path: Path) -> None:
        """Write the weights as safetensors."""
        write_file(path, save(self.model.state_dict()))


def train_decision_transformer(
    episodes: Episodes, settings: DecisionTransformerSettings, seed: int
) -> DecisionTransformerAgent:
    """Fit a model to windows of a dataset; the same seed gives the same model.

    Windows are drawn as published: an episode by its length, then any step of it as the last.
    """
    observations, actions = torch.from_numpy(episodes.observations), torch.from_numpy(episodes.actions)
    # undiscounted, to the recording's end, as published
    total = np.cumsum(episodes.rewards, dtype=np.float64)
    until = np.repeat(total[episodes.ends - 1], episodes.lengths)
    returns = torch.from_numpy((until - total + episodes.rewards).astype(np.float32))
    starts = torch.from_numpy(np.repeat(episodes.starts, episodes.lengths))
    best = float(episodes.returns().max())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        longest = int(episodes.lengths.max())
        scale = max(1.0, float(np.abs(episodes.returns()).mean()))
        model = DecisionTransformer(settings, observations, actions.shape[1], longest, scale)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        warmup = max(1.0, settings.warmup_fraction * settings.steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup))
        for _ in progress_bar(range(settings.steps), desc="decision transformer", unit="step"):
            last = torch.randint(len(actions), (settings.batch_size,))
            first = torch.maximum(starts[last], last - settings.window + 1)
            # windows at an episode's beginning are shorter: their rows begin at it, and what is behind does not count
            rows = first[:, None] + torch.arange(settings.window)
            counts = rows <= last[:, None]
            rows = torch.minimum(rows, last[:, None])
            chosen = model(returns[rows, None], observations[rows], actions[rows], rows - starts[last, None])
            loss = F.mse_loss(chosen[counts], actions[rows][counts])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
            optimizer.step()
            schedule.step()
    return DecisionTransformerAgent(model, best if settings.target_return is None else settings.target_return)
