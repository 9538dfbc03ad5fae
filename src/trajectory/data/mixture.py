"""Mixtures: several datasets of the same spaces as one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from trajectory.config import without_missing
from trajectory.data.episodes import Episodes
from trajectory.errors import require
from trajectory.targets import TARGET

DEFAULTS = Path(__file__).parents[1] / "conf" / "dataset"


def complete_part(part: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The keys of one dataset of a mixture, with the defaults of `conf/dataset/`; `source` is `builtin` by default.

    Raises:
        UserError: a mixture within the mixture.
    """
    kind = part.get("source", None if TARGET in part else "builtin")
    require(kind != "mixture", f"{key}.source", "that of a dataset that is no mixture itself", kind)
    path = DEFAULTS / f"{kind}.yaml"
    if not isinstance(kind, str) or not re.fullmatch(r"\w+", kind) or not path.is_file():
        return dict(part)
    defaults: Any = OmegaConf.load(path)
    return {**without_missing(defaults), **part}


def choose_episodes(lengths: Sequence[np.ndarray], weights: Sequence[float] | None, seed: int) -> list[np.ndarray]:
    """Of each part the ascending indices of the episodes that the mixture takes.

    With weights, the transitions of the parts are in the ratio of the weights, as nearly as whole episodes allow, and
    as many as there are: no episode is taken twice. Which ones is random.

    Args:
        lengths: (E,) of each part.
        weights: one for each part; None takes all episodes.
    """
    if weights is None:
        return [np.arange(len(one)) for one in lengths]
    least = min(one.sum() / weight for one, weight in zip(lengths, weights, strict=True))
    chosen = []
    for number, (one, weight) in enumerate(zip(lengths, weights, strict=True)):
        order = np.random.default_rng((seed, number)).permutation(len(one))
        reached = np.cumsum(one[order])
        count = 1 + int(np.argmin(np.abs(reached - least * weight)))
        chosen.append(np.sort(order[:count]))
    return chosen


def mixture_id(ids: Sequence[str], weights: Sequence[float] | None) -> str:
    """Such as `hopper-medium-v0+hopper-expert-v0@1:3`."""
    names = "+".join("-".join(one.split("/")[-2:]) for one in ids)
    return names if weights is None else f"{names}@{':'.join(f'{weight:g}' for weight in weights)}"


def read_mixture(sources: Sequence[Any], chosen: Sequence[np.ndarray], **_: Any) -> Iterator[Episodes]:
    """The chosen episodes of each source, one source after the other, some at a time."""
    for source, indices in zip(sources, chosen, strict=True):
        yield from source.chunks(indices)
