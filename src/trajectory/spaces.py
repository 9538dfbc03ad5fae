"""Gymnasium's spaces as flat columns of numbers, and back.

A space is a tree of Dicts and Tuples. Its leaves are Boxes, whose columns are numbers, and choices (Discrete,
MultiDiscrete, MultiBinary), of which each is one column that holds the chosen value itself. The columns of all leaves
stand side by side: the parts of a Dict in alphabetical order, as files do not keep another, or in the order of the keys
that are asked for. Pictures and what has no fixed number of columns (Text, Sequence, Graph, OneOf) are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple

from trajectory.errors import UserError, require
from trajectory.transition import Choices

PICTURE = 1_000  # numbers of 8 bits from which on a Box counts as a picture
EXACT = 1 << 24  # whole numbers up to here have a float32 of their own

Path = tuple[str | int, ...]  # of a leaf: the keys of Dicts and the numbers in Tuples that lead to it


@dataclass(frozen=True)
class FlatSpace:
    """A space as D columns.

    Args:
        space: as Gymnasium has it; of a Dict with keys, the parts that are used.
        leaves: path, space and columns of each.
        low, high: (D,) float64 lowest and highest value of each column, infinite where there is none.
        choices: of each column.
        dtype: of the columns.
    """

    space: Space
    leaves: tuple[tuple[Path, Space, slice], ...]
    low: np.ndarray
    high: np.ndarray
    choices: Choices
    dtype: np.dtype

    @classmethod
    def of(cls, space: Space, name: str, source_name: str, keys: Sequence[str] | None = None) -> FlatSpace:
        """The columns of a space.

        Args:
            name: "observation" or "action", for messages.
            source_name: of the environment or dataset, for messages.
            keys: `env.observation_keys`, the parts of a Dict to use, in this order; None takes all.

        Raises:
            UserError: keys that the space does not have, or a space that has no columns.
        """
        space = _sorted(space) if keys is None else _with_keys(space, keys, source_name)
        leaves, lows, highs, choices, start = [], [], [], [], 0
        for path, leaf in _leaves(space):
            reason = _refusal(leaf)
            if reason:
                raise UserError(_refused(space, path, leaf, name, source_name, reason))
            low, high = _bounds(leaf)
            leaves.append((path, leaf, slice(start, start + low.size)))
            lows.append(low.ravel())
            highs.append(high.ravel())
            is_choice = not isinstance(leaf, Box)
            ranges = zip(lows[-1], highs[-1], strict=True)
            choices += [(int(first), int(last - first) + 1) if is_choice else None for first, last in ranges]
            start += low.size
        require(start > 0, f"{source_name}: the {name} space", "one with at least one number or choice", str(space))
        dtype = np.result_type(np.float32, *(leaf.dtype for _, leaf, _ in leaves))
        return cls(space, tuple(leaves), np.concatenate(lows), np.concatenate(highs), tuple(choices), dtype)

    @property
    def size(self) -> int:
        """D, the number of columns."""
        return len(self.low)

    @property
    def is_flat(self) -> bool:
        """Whether the space's own values are rows of columns already."""
        is_row = isinstance(self.space, Box) and len(self.space.shape) == 1
        return is_row and np.issubdtype(self.space.dtype, np.floating)

    @property
    def box(self) -> Box:
        """The space of the columns."""
        if self.is_flat:
            assert isinstance(self.space, Box)
            return self.space
        largest = np.finfo(self.dtype).max
        low, high = (np.where(np.isinf(b), b, b.clip(-largest, largest)) for b in (self.low, self.high))
        return Box(low.astype(self.dtype), high.astype(self.dtype), dtype=self.dtype.type)

    def flatten(self, value: Any) -> np.ndarray:
        """A value of the space, or arrays of many in its structure -> (..., D).

        Raises:
            UserError: a part that is missing, or of another shape than the space's.
        """
        if self.is_flat:
            return np.asarray(value)
        parts = []
        for path, leaf, _ in self.leaves:
            part, shape = np.asarray(_at(value, path)), leaf.shape or ()
            leading = part.ndim - len(shape)
            name = "/".join(map(str, path)) or "value"
            require(leading >= 0 and part.shape[leading:] == shape, name, f"of shape (..., {shape})", part.shape)
            parts.append(part.reshape(*part.shape[:leading], -1))
        return np.concatenate(parts, axis=-1, dtype=self.dtype)

    def unflatten(self, row: np.ndarray) -> Any:
        """(D,) columns -> the value of the space; of choices and whole numbers the nearest that there is."""
        values = {}
        for path, leaf, columns in self.leaves:
            part = row[columns]
            if np.issubdtype(leaf.dtype, np.integer):
                part = np.clip(np.rint(part), self.low[columns], self.high[columns])
            part = part.astype(leaf.dtype).reshape(leaf.shape or ())
            values[path] = int(part) if isinstance(leaf, Discrete) else part
        return _tree(self.space, (), values)

    def random(self, uniform: np.ndarray, normal: np.ndarray) -> np.ndarray:
        """(..., D) random rows: uniform where a column has bounds, else normal about 0 or beyond its one bound.

        Args:
            uniform, normal: (..., D) uniform numbers in [0, 1) and standard normal ones.
        """
        low, high = self.low, self.high
        first, count = np.array([choice or (0, 0) for choice in self.choices]).T
        with np.errstate(invalid="ignore", over="ignore"):
            numbers = low + (high - low) * uniform
        one_sided = np.where(np.isfinite(low), low + np.abs(normal), high - np.abs(normal))
        unbounded = np.where(np.isfinite(low) | np.isfinite(high), one_sided, normal)
        numbers = np.where(np.isfinite(high - low), numbers, unbounded)
        return np.where(count > 0, first + np.floor(count * uniform), numbers)


def storable(space: Space) -> Space:
    """A space without the parts of a Dict that have no columns, such as a text beside numbers."""
    if not isinstance(space, Dict):
        return space
    kept = {key: part for key, part in space.spaces.items() if _has_columns(part)}
    return Dict(list(kept.items())) if kept and len(kept) < len(space.spaces) else space


def stack(values: Sequence[Any], space: Space) -> Any:
    """Values of a space as arrays with one row each, in the structure of the space."""
    if isinstance(space, Dict):
        return {key: stack([value[key] for value in values], part) for key, part in space.spaces.items()}
    if isinstance(space, Tuple):
        return tuple(stack([value[index] for value in values], part) for index, part in enumerate(space.spaces))
    return np.stack(values)


def leaves(values: Any) -> list[np.ndarray]:
    """The arrays in a structure, as `stack` gives it."""
    if isinstance(values, np.ndarray):
        return [values]
    parts = values.values() if isinstance(values, Mapping) else values
    return [leaf for part in parts for leaf in leaves(part)]


def map_leaves(read: Callable[[Any, Space, str], Any], values: Any, space: Space, source_name: str) -> Any:
    """The same structure, with `read(values, space, name)` of every leaf.

    Args:
        values: in the structure of the space: mappings for Dicts, sequences for Tuples.

    Raises:
        UserError: another structure than the space's, or what `read` refuses.
    """
    if isinstance(space, Dict):
        right = isinstance(values, Mapping) and set(values) == set(space.spaces)
        rule = f"a mapping with {', '.join(space.spaces)}"
        require(right, source_name, rule, list(values) if isinstance(values, Mapping) else type(values).__name__)
        named = space.spaces.items()
        return {key: map_leaves(read, values[key], part, f"{source_name}[{key!r}]") for key, part in named}
    if isinstance(space, Tuple):
        right = isinstance(values, Sequence) and len(values) == len(space.spaces)
        require(right, source_name, f"{len(space.spaces)} parts", type(values).__name__)
        numbered = enumerate(space.spaces)
        return tuple(map_leaves(read, values[index], part, f"{source_name}[{index}]") for index, part in numbered)
    return read(values, space, source_name)


def take_apart(rows: Any, space: Space, keys: Sequence[str] | None = None) -> Any:
    """(L, D) flat columns as arrays in the structure of the space; anything else is left as it is.

    Args:
        keys: `env.observation_keys`, the parts of a Dict to which the columns belong, in this order; None is all.
    """
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or not _has_columns(space):
        return rows
    flat = FlatSpace.of(space, "", "", keys)
    if rows.shape[1] != flat.size:
        return rows
    arrays = {path: rows[:, columns].reshape(len(rows), *(leaf.shape or ())) for path, leaf, columns in flat.leaves}
    return _tree(flat.space, (), arrays)


def check_choices(values: np.ndarray, space: Space, source_name: str) -> None:
    """Raise a `UserError` for a value among (..., *shape) that is not one of the choices of a leaf."""
    if isinstance(space, Box):
        return
    low, high = _bounds(space)
    wrong = values[(values < low) | (values > high) | (values != np.rint(values))]
    require(len(wrong) == 0, source_name, f"choices of {space}", wrong[0].item() if len(wrong) else None)


def _leaves(space: Space, path: Path = ()) -> Iterator[tuple[Path, Space]]:
    parts = _parts(space)
    if parts is None:
        yield path, space
    else:
        for key, part in parts:
            yield from _leaves(part, (*path, key))


def _parts(space: Space) -> list[tuple[str | int, Space]] | None:
    if isinstance(space, Dict):
        return list(space.spaces.items())
    return list(enumerate(space.spaces)) if isinstance(space, Tuple) else None


def _at(value: Any, path: Path) -> Any:
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"{'/'.join(map(str, path))} must be given, got {type(value).__name__}") from error
    return value


def _tree(space: Space, path: Path, values: Mapping[Path, Any]) -> Any:
    parts = _parts(space)
    if parts is None:
        return values[path]
    built = [(key, _tree(part, (*path, key), values)) for key, part in parts]
    return dict(built) if isinstance(space, Dict) else tuple(part for _, part in built)


def _bounds(leaf: Space) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest values of a leaf, in its shape, float64."""
    if isinstance(leaf, Box):
        return leaf.low.astype(np.float64), leaf.high.astype(np.float64)
    if isinstance(leaf, MultiBinary):
        return np.zeros(leaf.shape), np.ones(leaf.shape)
    assert isinstance(leaf, Discrete | MultiDiscrete)
    first = np.array(leaf.start, np.float64)
    return first, first + np.array(leaf.n if isinstance(leaf, Discrete) else leaf.nvec) - 1


def _has_columns(space: Space) -> bool:
    return all(_refusal(leaf) is None for _, leaf in _leaves(space))


def _refusal(leaf: Space) -> str | None:
    """Why a leaf has no columns; None if it has."""
    if isinstance(leaf, Box):
        return "a picture" if leaf.dtype == np.uint8 and np.prod(leaf.shape) >= PICTURE else None
    if not isinstance(leaf, Discrete | MultiDiscrete | MultiBinary):
        return "not of a fixed number of columns"
    return "beyond what float32 can tell apart" if max(np.abs(bound).max() for bound in _bounds(leaf)) > EXACT else None


def _refused(space: Space, path: Path, leaf: Space, name: str, source_name: str, reason: str) -> str:
    part = "".join(f" {key!r}" for key in path)
    shown = repr(leaf) if isinstance(leaf, Box | Discrete | MultiDiscrete) else type(leaf).__name__
    advice = "a wrapper of yours can give numbers or choices instead: env.wrappers=[{_target_:my_lab.Wrapper}]"
    kept = [key for key, other in space.spaces.items() if _has_columns(other)] if isinstance(space, Dict) else []
    if kept and name == "observation":
        advice = f"leave it out with env.observation_keys=[{','.join(kept)}]"
    return (
        f"{source_name}: the {name}{part} space must be of numbers or choices, got {' '.join(shown.split())}, which "
        f"is {reason}; {advice}"
    )


def _with_keys(space: Space, keys: Sequence[str], source_name: str) -> Dict:
    if not isinstance(space, Dict):
        kind = f"null, as the observations of {source_name} are a {type(space).__name__}"
        require(False, "env.observation_keys", kind, list(keys))
    assert isinstance(space, Dict)
    rule = f"some of {', '.join(space.spaces)}, each once, for {source_name}"
    right = 0 < len(keys) == len(set(keys)) and set(keys) <= set(space.spaces)
    require(right, "env.observation_keys", rule, list(keys))
    return Dict([(key, _sorted(space.spaces[key])) for key in keys])


def _sorted(space: Space) -> Space:
    if isinstance(space, Dict):
        return Dict([(key, _sorted(space.spaces[key])) for key in sorted(space.spaces, key=str)])
    return Tuple([_sorted(part) for part in space.spaces]) if isinstance(space, Tuple) else space
