"""Models of the faster fork, github.com/Howuhh/faster-trajectory-transformer.

Its training leaves `model_last.pt`, `config.yaml` and `discretizer.pt`. Imported is the model that it trained, with
attention over whole windows and without the value tokens; its cached planning lets tokens attend to them.
"""

from __future__ import annotations

from pathlib import Path
from types import NoneType
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from trajectory.config import load_yaml
from trajectory.errors import UserError, first_line, require
from trajectory.foreign.imported import Imported, config_values, model_layout, model_settings, of_names, the_file
from trajectory.foreign.pickles import Array, read_pickle
from trajectory.foreign.thresholds import check_edges, kbins_discretizer
from trajectory.model.checkpoint import read_tensors
from trajectory.planning.settings import PlannerSettings, SamplingSettings

NAMES = {"tok_emb": "token_embedding", "norm": "final_norm"}
BLOCKS = {
    "norm1": "attention_norm",
    "norm2": "mlp_norm",
    "attention.out_proj": "attention.projection",
    "mlp.0": "mlp.0",
    "mlp.2": "mlp.2",
}
MODEL_KEYS: dict[str, Any] = dict.fromkeys(
    ("vocab_size", "transition_dim", "observation_dim", "action_dim", "seq_len", "embedding_dim"), int
)
DATA_KEYS: dict[str, Any] = {"env_name": (str, NoneType), "discount": float}
DEFAULTS = {  # of its `GPT`, for keys that a configuration may leave out
    "num_layers": 4,
    "num_heads": 4,
    "use_sep_heads": False,
    "embedding_dropout": 0.1,
    "residual_dropout": 0.1,
    "attention_dropout": 0.1,
}
MAX_CONFIG_BYTES = 1 << 16


def read(folder: Path, weights: str | None) -> Imported:
    """The model in a folder of the fork's.

    Args:
        weights: the file of its state; None takes the last.

    Raises:
        UserError: a file that is missing, damaged or of another kind, or sizes that do not fit each other.
    """
    state_path = the_file(folder, weights, "model_*.pt")
    config = _config(folder / "config.yaml")
    given = {**DEFAULTS, **config["model"]}
    model: dict[str, Any] = {**given, **config_values(given, MODEL_KEYS, "config.yaml: model")}
    layout = model_layout(model, "config.yaml: model.transition_dim")
    D, N, length = layout.transition_dim, model["vocab_size"], model["seq_len"]
    require(length > 0 and length % D == 0, "config.yaml: model.seq_len", f"a multiple of {D}", length)
    rule = "true, as in all of its configurations: here every dimension has its own head"
    require(model["use_sep_heads"] is True, "config.yaml: model.use_sep_heads", rule, model["use_sep_heads"])
    settings = model_settings(
        n_layer=model["num_layers"],
        n_head=model["num_heads"],
        n_embd=model["embedding_dim"],
        window=length // D,
        bins=N,
        predicts_end=False,
        **{key: model[key] for key in ("embedding_dropout", "residual_dropout", "attention_dropout")},
    )
    edges = check_edges(_edges(folder / "discretizer.pt"), (D, N + 1), f"the bin_edges in {folder / 'discretizer.pt'}")
    data = config_values(config["dataset"], DATA_KEYS, "config.yaml: dataset")
    return Imported(
        layout=layout,
        model=settings,
        weights=our_weights(read_tensors(state_path), settings.n_layer, state_path),
        edges=torch.from_numpy(edges.copy()),
        discretizer=kbins_discretizer(edges),
        task=data["env_name"],
        discount=data["discount"],
        terminal_reward=None,
        planner=_planner(config.get("trainer", {}), settings.window),
        origin={"source": "howuhh", "state": state_path.name},
    )


def our_weights(state: dict[str, Any], layers: int, path: Path) -> dict[str, Tensor]:
    """The fork's state in our names; strict loading finds what is missing.

    It knows no stop token: that one gets zeros, and `predicts_end=False` keeps it from being predicted. Its last
    position is left out, since no window has an input there.

    Raises:
        UserError: the state is of another kind of model.
    """
    try:
        weights = of_names(state, NAMES, BLOCKS)
        table, head = weights["token_embedding.weight"], state["head.weight"]  # (D * N, C) and (D, N, C)
        weights["token_embedding.weight"] = torch.cat([table, torch.zeros_like(table[:1])])
        weights["head"] = torch.cat([head, torch.zeros_like(head[:, :1])], dim=1)
        weights["position_embedding"] = state["pos_emb"][0, :-1]
        for block in range(layers):
            for kind in ("weight", "bias"):
                stacked = state[f"blocks.{block}.attention.in_proj_{kind}"]
                weights[f"blocks.{block}.attention.qkv.{kind}"] = stacked
    except (KeyError, TypeError, IndexError, RuntimeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} must be a state of the fork's GPT: {first_line(error)}") from error
    return weights


def _config(path: Path) -> dict[str, Any]:
    """Its sections; values are taken as they stand, without resolving anything."""
    require(path.is_file(), "path", "a folder with the fork's config.yaml", str(path.parent))
    require(path.stat().st_size <= MAX_CONFIG_BYTES, str(path), "a configuration", "a larger file")
    found: Any = OmegaConf.to_container(load_yaml(path), resolve=False)
    found = {"trainer": {}, **found} if isinstance(found, dict) else {}
    sections = [key for key in ("model", "dataset", "trainer") if isinstance(found.get(key), dict)]
    require(len(sections) == 3, str(path), "a mapping with `model` and `dataset`, and `trainer` if given", sections)
    return found


def _edges(path: Path) -> Any:
    require(path.is_file(), "path", "a folder with the fork's discretizer.pt", str(path.parent))
    found = read_pickle(path, "KBinsDiscretizer").attributes.get("bin_edges")
    numbers = found.numbers if isinstance(found, Array) else None
    if numbers is None:
        raise UserError(f"{path} must have an array of bin_edges")
    return numbers


def _planner(trainer: dict[str, Any], window: int) -> PlannerSettings:
    """As it evaluates while training. Its context counts the present transition, as the original's does."""
    context = config_values({"eval_beam_context": 16, **trainer}, {"eval_beam_context": int}, "config.yaml: trainer")
    return PlannerSettings(
        beam_width=trainer.get("eval_beam_width", 256),
        horizon=trainer.get("eval_beam_steps", 64),
        context=max(0, min(window, context["eval_beam_context"]) - 1),
        expansion=trainer.get("eval_sample_expand", 1),
        discount=trainer.get("eval_discount", 0.99),
        replan_interval=trainer.get("eval_plan_every", 1),
        action=SamplingSettings(top_k=trainer.get("eval_k_act"), temperature=trainer.get("eval_temperature", 1.0)),
        observation=SamplingSettings(top_k=trainer.get("eval_k_obs", 1)),
        reward=SamplingSettings(top_k=trainer.get("eval_k_reward", 1)),
    )
