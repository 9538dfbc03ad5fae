"""Files and frames as named columns, of which only those that are needed are read."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trajectory.data.hdf5 import check_inside
from trajectory.errors import UserError, first_line, require
from trajectory.imports import optional_import

WORDS = {"true": 1.0, "false": 0.0}  # of flags in text, in any case


@dataclass(frozen=True)
class Columns:
    """The columns of one file or frame.

    Args:
        source_name: of it, for messages.
        names: in their order.
        read: gives a column by its name, (T, ...); of text where it is not of numbers.
    """

    source_name: str
    names: list[str]
    read: Callable[[str], np.ndarray]


def data_files(path: Path) -> list[Path]:
    """A file of data by itself, or all in a folder and below, unsorted. Of a LeRobot dataset, those in `data`.

    Raises:
        UserError: there is no such path, or no file of a known format.
    """
    rule = f"a file or a folder of {KINDS} files"
    if os.path.isfile(path):  # of any text, even one that is too long for a name
        require(path.suffix in FORMATS, "dataset.path", rule, str(path))
        return [path]
    require(os.path.isdir(path), "dataset.path", rule, str(path))
    folder = path / "data" if (path / "meta" / "info.json").is_file() else path
    files = [file for file in folder.rglob("*") if file.suffix in FORMATS and file.is_file()]
    require(len(files) > 0, "dataset.path", f"a folder with at least one {KINDS} file", str(path))
    return files


@contextmanager
def open_columns(path: Path) -> Generator[Columns]:
    """The columns of a file, by its suffix. Nothing in a file is ever unpickled.

    Raises:
        UserError: a damaged file, also while its columns are read, or one that needs a package that is not installed.
    """
    try:
        with FORMATS[path.suffix](path) as columns:
            yield columns
    except UserError:
        raise
    except Exception as error:  # damage makes zip, NumPy, Arrow and HDF5 raise errors of many types
        reason = first_line(error)
        raise UserError(f"dataset.path: {path} must be a complete {path.suffix} file of numbers: {reason}") from error


def _named(path: Path) -> str:
    return f"dataset.path={str(path)!r}"


@contextmanager
def _npz(path: Path) -> Generator[Columns]:
    with np.load(path, allow_pickle=False) as file:
        require(isinstance(file, np.lib.npyio.NpzFile), _named(path), "a complete .npz file", "one array")
        yield Columns(_named(path), list(file.files), file.__getitem__)


@contextmanager
def _hdf5(path: Path) -> Generator[Columns]:
    import h5py  # late, as this file is imported with the package's front door

    with h5py.File(path, "r") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)

        def read(name: str) -> np.ndarray:
            check_inside(file[name], file.filename, _named(path))
            return np.asarray(file[name][()])

        yield Columns(_named(path), names, read)


@contextmanager
def _parquet(path: Path) -> Generator[Columns]:
    with optional_import(f"reading {path}", "parquet"):
        from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:

        def read(name: str) -> np.ndarray:
            # a dot in a name also leads into a structure: by number there is no doubt
            table = file.read(columns=[name])
            return _arrow(table[name].combine_chunks(), f"{_named(path)}: {name}")

        yield Columns(_named(path), list(file.schema_arrow.names), read)


def _arrow(array: Any, source_name: str) -> np.ndarray:
    """(T, ...) from an Arrow array of numbers, texts, or lists of one length."""
    if len(array) == 0:
        return np.zeros(0)
    require(array.null_count == 0, source_name, "without empty cells", f"{array.null_count} of them")
    if not hasattr(array, "flatten") or not hasattr(array.type, "value_type"):
        return array.to_numpy(zero_copy_only=False)
    inner = _arrow(array.flatten(), source_name)
    lengths = set(array.value_lengths().unique().to_pylist())
    require(len(lengths) == 1, source_name, "lists of one length", sorted(lengths)[:3])
    return inner.reshape(len(array), -1, *inner.shape[1:])


@contextmanager
def _csv(path: Path) -> Generator[Columns]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        header = [name.strip() for name in next(lines, [])]
        require(len(header) > 0, _named(path), "a file with a line of column names", "no line")
        rows = []
        for row in lines:
            if not row:
                continue
            rule = f"of {len(header)} cells in each line, as in the first"
            require(len(row) == len(header), _named(path), rule, f"{len(row)} in line {lines.line_num}")
            rows.append(row)
    twice = sorted(name for name, count in Counter(header).items() if count > 1)
    require(not twice, _named(path), "of different column names", ", ".join(twice))
    yield Columns(_named(path), header, lambda name: _cells([row[header.index(name)] for row in rows]))


def _cells(texts: list[str]) -> np.ndarray:
    """(T,) numbers if all cells are, else text; a flag may be a word."""
    try:
        return np.array([WORDS.get(text.strip().lower(), text) for text in texts], dtype=np.float64)
    except ValueError:
        return np.array(texts)


def columns_of_frame(frame: Any) -> Columns:
    """The columns of a pandas or polars frame, or of one like them; a cell may hold a list or an array."""

    def read(name: str) -> np.ndarray:
        values = np.asarray(frame[name].to_numpy())
        if values.dtype == object and len(values) and not isinstance(values[0], str):
            return np.stack([np.asarray(value) for value in values])
        return values.astype(str) if values.dtype == object else values

    return Columns("episodes", [str(name) for name in frame.columns], read)


def is_frame(data: Any) -> bool:
    """Whether these are columns of a pandas or polars frame, or of one like them."""
    return hasattr(data, "columns") and hasattr(data, "__getitem__")


KINDS = ".npz, .parquet, .csv or .hdf5"
FORMATS = {".npz": _npz, ".parquet": _parquet, ".csv": _csv, ".hdf5": _hdf5, ".h5": _hdf5}
