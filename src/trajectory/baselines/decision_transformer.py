"""Decision Transformer (Chen et al. 2021): predicts actions from a desired return-to-go and the past.

Names: B windows of T steps, O = observation_dim, A = action_dim, C = n_embd channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from trajectory.baselines.settings import DecisionTransformerSettings
from trajectory.data.episodes import Episodes
from trajectory.files import write_file
from trajectory.networks import ActionColumns, Normalizer
from trajectory.progress import progress_bar

TOKENS_PER_STEP = 3  # return-to-go, observation, action


class DecisionTransformer(nn.Module):
    """A causal Transformer over the tokens (return-to-go, observation, action) of successive steps.

    Args:
        normalizer: of the (..., O) observations.
        actions: how the network takes and gives them.
        max_steps: number of step embeddings, the length of the longest episode.
        return_scale: divides returns-to-go.
    """

    def __init__(
        self,
        settings: DecisionTransformerSettings,
        normalizer: Normalizer,
        actions: ActionColumns,
        max_steps: int,
        return_scale: float,
    ) -> None:
        super().__init__()
        C = settings.n_embd
        self.window = settings.window
        self.normal, self.actions = normalizer, actions
        self.embed_return, self.embed_action = nn.Linear(1, C), nn.Linear(actions.size, C)
        self.embed_observation = nn.Linear(normalizer.size, C)
        self.embed_step = nn.Embedding(max_steps, C)
        self.embedding_norm = nn.LayerNorm(C)
        layer = nn.TransformerEncoderLayer(
            C, settings.n_head, 4 * C, settings.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, settings.n_layer, nn.LayerNorm(C), enable_nested_tensor=False)
        self.head = nn.Linear(C, actions.size)
        self.register_buffer("return_scale", torch.tensor(return_scale))
        self.return_scale: Tensor

    def forward(self, returns: Tensor, observations: Tensor, actions: Tensor, steps: Tensor) -> Tensor:
        """(B, T, 1) returns-to-go, (B, T, O) observations, (B, T, A) actions at (B, T) steps -> (B, T, size)
        columns of actions, as `ActionColumns` has them.
        """
        step_embedding = self.embed_step(steps.clamp(max=self.embed_step.num_embeddings - 1))
        tokens = torch.stack(
            [
                self.embed_return(returns / self.return_scale) + step_embedding,
                self.embed_observation(self.normal(observations)) + step_embedding,
                self.embed_action(self.actions.encode(actions)) + step_embedding,
            ],
            dim=2,
        ).flatten(1, 2)  # (B, 3 T, C)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=tokens.device)
        hidden = self.blocks(self.embedding_norm(tokens), mask=mask, is_causal=True)
        return self.actions.squash(self.head(hidden[:, 1::TOKENS_PER_STEP]))  # from the observation tokens


class DecisionTransformerAgent:
    """Acts for a desired return, from which it subtracts every reward, and remembers a window of steps."""

    def __init__(self, model: DecisionTransformer, target_return: float) -> None:
        self.model = model.eval()
        self.target_return = target_return
        self.reset()

    def reset(
        self, environments: int = 1, seeds: Sequence[int] | None = None, goals: np.ndarray | Sequence | None = None
    ) -> None:
        """Begin an episode in each environment; the seeds are ignored, since actions are deterministic."""
        self.steps = [0] * environments
        # per environment: up to a window of steps, each [return-to-go, observation, action]
        self.history: list[list[list[np.ndarray]]] = [[] for _ in range(environments)]

    @torch.inference_mode()
    def act(
        self,
        observation: np.ndarray,
        previous_reward: float | np.ndarray | None = None,
        environments: Sequence[int] | None = None,
    ) -> np.ndarray:
        """(observation_dim,) or (E, observation_dim) -> actions of the same leading shape."""
        environments = range(len(self.history)) if environments is None else environments
        observations = np.atleast_2d(np.asarray(observation, dtype=np.float32))
        rewards = np.zeros(len(observations)) if previous_reward is None else np.atleast_1d(previous_reward)
        no_action = np.zeros(len(self.model.actions.choices), dtype=np.float32)  # causal: no observation sees it
        for environment, row, reward in zip(environments, observations, rewards, strict=True):
            history = self.history[environment]
            return_to_go = history[-1][0] - reward if history else np.array([self.target_return])
            history.append([return_to_go.astype(np.float32), row, no_action])
            del history[: -self.model.window]
        lengths = [len(self.history[environment]) for environment in environments]
        actions = np.empty((len(observations), len(no_action)), dtype=np.float32)
        for length in sorted(set(lengths)):  # a batch needs windows of one length
            batch = [index for index, other in enumerate(lengths) if other == length]
            histories = [self.history[environments[index]] for index in batch]
            columns = [
                torch.from_numpy(np.array([[step[part] for step in history] for history in histories]))
                for part in range(3)
            ]
            last_steps = torch.tensor([self.steps[environments[index]] for index in batch])
            steps = last_steps[:, None] + torch.arange(length) + 1 - length
            actions[batch] = self.model.actions.decode(self.model(*columns, steps)[:, -1]).numpy()
        for environment, action in zip(environments, actions, strict=True):
            self.history[environment][-1][2] = action
            self.steps[environment] += 1
        return actions[0] if np.ndim(observation) == 1 else actions

    def replace_actions(self, actions: np.ndarray, environments: Sequence[int] | None = None) -> None:
        """Say which actions were executed in the place of those that `act` returned last."""
        environments = range(len(self.history)) if environments is None else environments
        for environment, action in zip(environments, np.atleast_2d(actions), strict=True):
            self.history[environment][-1][2] = np.asarray(action, dtype=np.float32)

    def save(self, path: Path) -> None:
        """Write the weights as safetensors."""
        write_file(path, save(self.model.state_dict()))


def train_decision_transformer(
    episodes: Episodes, settings: DecisionTransformerSettings, seed: int, action_bounds: np.ndarray | None = None
) -> DecisionTransformerAgent:
    """Train a model on windows of a dataset; the same seed gives the same model.

    Windows are sampled as published: an episode with probability proportional to its length, and any of its steps as
    the window's last.

    Args:
        action_bounds: (2, action_dim), as for `ActionBounds.from_data`.
    """
    observations, actions = torch.from_numpy(episodes.observations), torch.from_numpy(episodes.actions)
    # returns-to-go are undiscounted and end with the recording, as published
    total = np.cumsum(episodes.rewards, dtype=np.float64)
    total_at_end = np.repeat(total[episodes.ends - 1], episodes.lengths)
    returns_to_go = torch.from_numpy((total_at_end - total + episodes.rewards).astype(np.float32))
    starts = torch.from_numpy(np.repeat(episodes.starts, episodes.lengths))
    best_return = float(episodes.returns().max())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        max_steps = int(episodes.lengths.max())
        return_scale = max(1.0, float(np.abs(episodes.returns()).mean()))
        layout = episodes.layout
        normalizer = Normalizer(observations, layout.observation_choices)
        columns = ActionColumns.of(action_bounds, actions, layout.action_choices)
        model = DecisionTransformer(settings, normalizer, columns, max_steps, return_scale)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        warmup = max(1.0, settings.warmup_fraction * settings.steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup))
        for _ in progress_bar(range(settings.steps), desc="decision transformer", unit="step"):
            last = torch.randint(len(actions), (settings.batch_size,))
            first = torch.maximum(starts[last], last - settings.window + 1)
            # a window at an episode's beginning is shorter; padding behind it is masked out of the loss
            rows = first[:, None] + torch.arange(settings.window)  # (B, T)
            mask = rows <= last[:, None]
            rows = torch.minimum(rows, last[:, None])
            predicted = model(returns_to_go[rows, None], observations[rows], actions[rows], rows - starts[last, None])
            loss = columns.loss(predicted[mask], actions[rows][mask])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
            optimizer.step()
            schedule.step()
    return DecisionTransformerAgent(model, best_return if settings.target_return is None else settings.target_return)
