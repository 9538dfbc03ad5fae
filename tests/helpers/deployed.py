"""Plans greedily with the files of an ONNX export alone: JSON, NumPy and ONNX Runtime, and nothing of this project."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession

Cache = tuple[np.ndarray, np.ndarray]  # (L, R, n, C) keys and values


class Deployed:
    """A beam of width 1 that takes the most likely token of every kind.

    Args:
        folder: of the export.
        horizon: transitions planned.
    """

    def __init__(self, folder: Path, horizon: int) -> None:
        self.about = json.loads((folder / "deployment.json").read_text())
        self.session = InferenceSession(folder / "step.onnx", providers=["CPUExecutionProvider"])
        layout, self.model = self.about["hyper_parameters"]["layout"], self.about["hyper_parameters"]["model"]
        self.observation_dim, self.reward_index = layout["observation_dim"], sum(list(layout.values())[:2])
        self.context, self.horizon = self.about["hyper_parameters"]["planner"]["context"], horizon
        self.stop, self.bins = self.about["stop_token"], self.about["bins"]
        self.reset()

    def reset(self) -> None:
        self.history: list[list[int]] = []  # transitions

    def step(self, tokens: np.ndarray, position: int, cache: Cache | None) -> tuple[np.ndarray, Cache]:
        """(R, T) tokens behind those of the cache -> (R, T, N + 1) logits, and the cache with them."""
        if cache is None:
            empty = np.zeros((self.model["n_layer"], len(tokens), 0, self.model["n_embd"]), np.float32)
            cache = empty, empty
        inputs = {"tokens": tokens.astype(np.int64), "position": np.array(position), "keys": cache[0]}
        logits, keys, values = map(np.asarray, self.session.run(None, {**inputs, "values": cache[1]}))
        return logits, (keys, values)

    def encode(self, numbers: np.ndarray, first: int = 0) -> list[int]:
        """Numbers of the dimensions from `first` on -> their tokens: how many boundaries are not above each."""
        numbers = numbers.astype(np.float32)
        edges = [of["boundaries"] for of in self.bins[first : first + len(numbers)]]
        return [int(np.searchsorted(*pair, side="right")) for pair in zip(edges, numbers, strict=True)]

    def decode(self, tokens: list[int], first: int = 0) -> np.ndarray:
        """Tokens of the dimensions from `first` on -> (n,) float32 numbers; the stop token is the top bin."""
        values = [of["values"] for of in self.bins[first : first + len(tokens)]]
        return np.array([of[min(token, len(of) - 1)] for of, token in zip(values, tokens, strict=True)], np.float32)

    def plan(self, observation: np.ndarray) -> list[list[int]]:
        """The tokens of each planned transition."""
        D = self.reward_index + 2
        known = self.encode(observation)
        tokens = [token for transition in self.history[-self.context :] for token in transition] + known
        logits, cache = self.step(np.array([tokens]), 0, None)
        transitions, transition, position, alive = [], list(known), len(tokens), True
        while len(transitions) < self.horizon:
            dimension = position % D
            used = len(self.bins[dimension]["values"])
            allowed = np.append(logits[0, -1, :used], logits[0, -1, -1] if dimension == 0 else -np.inf)
            token = int(allowed.argmax())
            alive = alive and token < used
            transition.append(token if alive else self.stop)
            logits, cache = self.step(np.array([transition[-1:]]), position, cache)
            position += 1
            if dimension == D - 1:
                transitions.append(transition)
                transition = []
        return transitions

    def act(self, observation: np.ndarray, previous_reward: float | None = None) -> np.ndarray:
        """The next action."""
        if previous_reward is not None:
            reward = self.encode(np.array([previous_reward]), self.reward_index)
            self.history.append([*self.pending, *reward, len(self.bins[-1]["values"]) - 1])  # an unknown value
        planned = self.plan(observation)[0][self.observation_dim : self.reward_index]
        self.pending = [*self.encode(observation), *planned]
        return self.decode(planned, self.observation_dim)
