"""Models of the original, github.com/jannerm/trajectory-transformer.

Its training leaves `state_EPOCH.pt`, `model_config.pkl` and `data_config.pkl`, but not its discretiser, which it fits
again from the data whenever it plans. The thresholds must therefore stand beside them, written once by its code:
`thresholds.npy` by numpy, or the pickled discretiser itself as `discretizer.pkl`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trajectory.errors import UserError, first_line, require
from trajectory.foreign.imported import Imported, config_values, model_layout, model_settings, of_names, the_file
from trajectory.foreign.pickles import Array, Global, Record, read_pickle, write_record
from trajectory.foreign.thresholds import check_edges, quantile_discretizer
from trajectory.model.checkpoint import Checkpoint, read_tensors
from trajectory.planning.settings import PlannerSettings

NAMES = {"tok_emb": "token_embedding", "ln_f": "final_norm"}  # our names of its modules
BLOCKS = {
    "ln1": "attention_norm",
    "ln2": "mlp_norm",
    "attn.proj": "attention.projection",
    "mlp.0": "mlp.0",
    "mlp.2": "mlp.2",
}
PROJECTIONS = ("query", "key", "value")  # in the order in which ours are stacked
MODEL_KEYS: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "block_size", "n_layer", "n_head", "n_embd"), int),
    **dict.fromkeys(("observation_dim", "action_dim", "transition_dim"), int),
    **dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), (int, float)),
}
DATA_KEYS: dict[str, Any] = {"env": (str, NoneType), "discount": float, "penalty": (int, float, NoneType)}
CONFIG, GPT_CLASS = "trajectory.utils.config.Config", "trajectory.models.transformers.GPT"
DATA_CLASS = "trajectory.datasets.sequence.DiscretizedDataset"
HOW = "np.save('thresholds.npy', dataset.discretizer.thresholds) in that project's scripts/plan.py writes it"
CONTEXT = 5  # transitions in its planner's input, the present one included


def read(folder: Path, weights: str | None) -> Imported:
    """The model in a folder of the original's.

    Args:
        weights: the file of its state; None takes the last epoch's.

    Raises:
        UserError: a file that is missing, damaged or of another kind, or sizes that do not fit each other.
    """
    state_path = the_file(folder, weights, "state_*.pt")
    model = config_values(_config(folder / "model_config.pkl", GPT_CLASS), MODEL_KEYS, "model_config.pkl")
    data = _config(folder / "data_config.pkl", DATA_CLASS)
    layout = model_layout(model, "model_config.pkl: transition_dim")
    D, N = layout.transition_dim, model["vocab_size"]
    block_size = model["block_size"]
    require((block_size + 1) % D == 0, "model_config.pkl: block_size", f"one below a multiple of {D}", block_size)
    require(data.get("step", 1) == 1, "data_config.pkl: step", "1, as published", data.get("step"))
    settings = model_settings(
        **{key: model[key] for key in ("n_layer", "n_head", "n_embd")},
        window=(block_size + 1) // D,
        bins=N,
        **{f"{ours}_dropout": float(model[f"{its}_pdrop"]) for ours, its in DROPOUTS.items()},
    )
    edges = check_edges(read_thresholds(folder).T, (D, N + 1), f"the thresholds in {folder}, transposed,")
    known = config_values(data, DATA_KEYS, "data_config.pkl")
    return Imported(
        layout=layout,
        model=settings,
        weights=our_weights(read_tensors(state_path), settings.n_layer, state_path),
        edges=torch.from_numpy(edges.copy()),
        discretizer=quantile_discretizer(edges),
        task=known["env"],
        discount=known["discount"],
        terminal_reward=known["penalty"],
        planner=PlannerSettings(context=min(CONTEXT, settings.window) - 1, crop_every_transition=True),
        origin={"source": "jannerm", "state": state_path.name, "model": _plain(model), "data": _plain(data)},
    )


DROPOUTS = {"embedding": "embd", "residual": "resid", "attention": "attn"}


def read_thresholds(folder: Path) -> np.ndarray:
    """(N + 1, D) thresholds of the original's discretiser.

    Raises:
        UserError: neither of the two files is there, or one that is damaged.
    """
    path, pickled = folder / "thresholds.npy", folder / "discretizer.pkl"
    if path.is_file():
        try:
            return np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            # numpy's message may tell how to execute it nevertheless
            raise UserError(f"{path} must be a complete array of numbers by np.save; nothing in it was run") from error
    require(pickled.is_file(), "path", f"a folder with thresholds.npy ({HOW}) or discretizer.pkl", str(folder))
    found = read_pickle(pickled, "QuantileDiscretizer").attributes.get("thresholds")
    numbers = found.numbers if isinstance(found, Array) else None
    if numbers is None:
        raise UserError(f"{pickled} must have an array of thresholds")
    return numbers


def our_weights(state: dict[str, Any], layers: int, path: Path) -> dict[str, Tensor]:
    """The original's state in our names; strict loading finds what is missing.

    Raises:
        UserError: the state is of another kind of model.
    """
    try:
        weights = of_names(state, NAMES, BLOCKS)
        weights["position_embedding"], weights["head"] = state["pos_emb"][0], state["head.weight"]
        for block in range(layers):
            for kind in ("weight", "bias"):
                parts = [state[f"blocks.{block}.attn.{name}.{kind}"] for name in PROJECTIONS]
                weights[f"blocks.{block}.attention.qkv.{kind}"] = torch.cat(parts)
    except (KeyError, TypeError, IndexError, RuntimeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} must be a state of the original's GPT: {first_line(error)}") from error
    return weights


def files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The reverse of `read`: the files of the original, by name.

    Raises:
        UserError: the checkpoint was not imported from there.
    """
    origin = checkpoint.hyperparameters.get("imported") or {}
    rule = "one that was imported from there for format=jannerm: others have bins that it does not know"
    name = str(origin.get("state"))  # which must not lead out of the folder
    is_theirs = origin.get("source") == "jannerm" and Path(name).name == name
    require(is_theirs and checkpoint.edges is not None, "checkpoint", rule, "another")
    assert checkpoint.edges is not None
    state, thresholds = io.BytesIO(), io.BytesIO()
    torch.save(their_state(checkpoint.gpt.state_dict()), state)
    np.save(thresholds, checkpoint.edges.numpy().T)
    configs = {"model_config.pkl": (GPT_CLASS, origin["model"]), "data_config.pkl": (DATA_CLASS, origin["data"])}
    return {
        name: state.getvalue(),
        **{file: write_record(CONFIG, {"_class": Global(of), "_dict": to}) for file, (of, to) in configs.items()},
        "thresholds.npy": thresholds.getvalue(),
    }


def their_state(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights in the original's names, with its masks."""
    names, blocks = ({new: old for old, new in each.items()} for each in (NAMES, BLOCKS))
    found: dict[str, Tensor] = of_names(ours, names, blocks)
    positions = ours["position_embedding"]
    found |= {"pos_emb": positions[None], "head.weight": ours["head"]}
    size, D = len(positions), len(ours["head"])
    mask = torch.ones(size, size).tril()
    mask[:, D - 1 :: D] = 0
    for name, value in ours.items():
        if ".attention.qkv." in name:
            block, kind = name.split(".")[1], name.rpartition(".")[2]
            attention = f"blocks.{block}.attn"
            for projection, part in zip(PROJECTIONS, value.chunk(3), strict=True):
                found[f"{attention}.{projection}.{kind}"] = part.clone()
            found[f"{attention}.mask"] = mask[None, None]
    return found


def _config(path: Path, cls: str) -> dict[str, Any]:
    """The values in a pickled `Config` of the class `cls`."""
    attributes = read_pickle(path, "Config").attributes
    made, values = attributes.get("_class"), attributes.get("_dict")
    name = made.name if isinstance(made, type) and issubclass(made, Record) else None
    require(name == cls, f"{path}", f"of the class {cls}", name)
    require(isinstance(values, dict), f"{path}", "a configuration with values", type(values).__name__)
    assert isinstance(values, dict)
    return values


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """What can be written into a checkpoint again."""
    return {key: value for key, value in values.items() if isinstance(value, int | float | str | None)}
