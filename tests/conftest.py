"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trajectory.model.gpt import GPT, GPTSettings
from trajectory.transition import TransitionLayout


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local Minari store, thrown away after the test."""
    path = tmp_path / "store"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(path))
    return path


@pytest.fixture(scope="session")
def make_gpt() -> Callable[..., GPT]:
    """`make_gpt(layout, **settings)`: a small float64 model, every parameter random, in evaluation mode.

    Biases, norms and positions begin training as constants; random ones show where a computation leaves them out.
    """

    def make(layout: TransitionLayout | None = None, **settings: Any) -> GPT:
        small: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 8, "window": 3, "bins": 5}
        gpt = GPT(GPTSettings(**(small | settings)), layout or TransitionLayout(2, 1)).double().eval()
        generator = torch.Generator().manual_seed(0)
        for parameter in gpt.parameters():
            torch.nn.init.normal_(parameter, std=0.5, generator=generator)
        return gpt

    return make
