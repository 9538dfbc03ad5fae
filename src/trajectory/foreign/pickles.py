"""Pickles of other projects, read without running them: their classes become inert records of names and attributes.

A pickle names the callables that rebuild its objects. Here every name is looked up in a short list of stand-ins, each
of which keeps what it is given and does nothing. A name that is not in the list ends the reading. Nothing is imported.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from pathlib import Path
from pickle import Unpickler
from typing import Any

import numpy as np

from trajectory.errors import UserError, first_line

MAX_BYTES = 2 << 30  # of a pickle; one of a million transitions has a tenth of it
CLASSES = (  # of the two public implementations, which have the same package name
    "trajectory.utils.config.Config",
    "trajectory.models.transformers.GPT",
    "trajectory.models.transformers.ConditionalGPT",
    "trajectory.datasets.sequence.SequenceDataset",
    "trajectory.datasets.sequence.DiscretizedDataset",
    "trajectory.datasets.sequence.GoalDataset",
    "trajectory.utils.discretization.QuantileDiscretizer",
    "trajectory.utils.discretization.KBinsDiscretizer",
    "torch.FloatStorage",
    "torch.DoubleStorage",
)


class Record:
    """What stands for an object: the attributes that its pickle gives it."""

    name = ""
    attributes: dict[str, Any]

    def __new__(cls, *_: Any) -> Any:
        record = super().__new__(cls)
        record.attributes = {}
        return record

    def __init__(self, *_: Any) -> None:
        """Without its arguments: objects of the classes below are described by their attributes."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise UserError(f"{self.name} must have attributes by name, got {type(state).__name__}")
        self.attributes = state


class _Dtype(Record):
    """A `numpy.dtype` of plain numbers."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or code[:1] not in "fiub" or not code[1:].isdigit():
            raise UserError(f"arrays must be of numbers, got the type {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        self.dtype = self.dtype.newbyteorder(order if order in "<>" else "=")


class Array(Record):
    """A `numpy.ndarray`; `numbers` is what it holds."""

    numbers: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, is_fortran, data = state
        dtype = kind.dtype
        if not isinstance(data, bytes) or math.prod(shape) * dtype.itemsize != len(data):
            raise UserError("an array must have the bytes of its numbers")
        self.numbers = np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")


# Functions have stand-ins that are classes too: a pickle can set the attributes of whatever else it is given.


class _Reconstruct(Record):
    def __new__(cls, *_: Any) -> Array:
        return Array()


class _Scalar(Record):
    def __new__(cls, kind: _Dtype, data: bytes) -> Any:
        (number,) = np.frombuffer(data, kind.dtype)
        return number.item()


class _FromBuffer(Record):
    def __new__(cls, data: Any, kind: _Dtype, shape: Any, order: str) -> Array:
        array = Array()
        array.__setstate__((1, shape, kind, order == "F", bytes(data)))
        return array


class _Encode(Record):
    """Bytes in pickles of protocol 2 and below."""

    def __new__(cls, text: str, encoding: str) -> Any:
        return text.encode("latin1" if encoding == "latin1" else "ascii")


def _stand_in(name: str) -> type[Record]:
    return type("Record", (Record,), {"name": name})


STAND_INS: dict[str, type[Record]] = {
    **{name: _stand_in(name) for name in CLASSES},
    "numpy.dtype": _Dtype,
    "numpy.ndarray": Array,
    "numpy.core.multiarray._reconstruct": _Reconstruct,
    "numpy._core.multiarray._reconstruct": _Reconstruct,
    "numpy.core.multiarray.scalar": _Scalar,
    "numpy._core.multiarray.scalar": _Scalar,
    "numpy.core.numeric._frombuffer": _FromBuffer,
    "numpy._core.numeric._frombuffer": _FromBuffer,
    "_codecs.encode": _Encode,
    "collections.OrderedDict": _stand_in("collections.OrderedDict"),
    "torch._utils._rebuild_tensor_v2": _stand_in("torch.Tensor"),
}


class _Reader(Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in STAND_INS:
            raise UserError(f"it asks for {full}")
        return STAND_INS[full]

    def persistent_load(self, pid: Any) -> None:
        """The numbers of a tensor, which are not needed."""


def read_pickle(path: Path, name: str) -> Record:
    """The one object of a pickle, or of the pickle in an archive of `torch.save`; nothing in it is run.

    Args:
        name: of the class that it must be of.

    Raises:
        UserError: no such file, one that is damaged, or one that asks for anything but plain containers, arrays of
            numbers and the classes of `CLASSES`.
    """
    rule = f"{path} must be a pickle of {name}"
    try:
        found = _Reader(io.BytesIO(_pickled(path))).load()
    except OSError as error:
        raise UserError(f"{rule}: {error.strerror or error}") from error
    except UserError as error:
        raise UserError(f"{rule} and nothing else; nothing in it was run: {error}") from error
    except Exception as error:  # a damaged pickle may raise anything
        reason = f"{type(error).__name__}: {first_line(error)[:120]}"
        raise UserError(f"{rule}, but it is damaged or of another kind: {reason}") from error
    if not isinstance(found, Record) or found.name.rpartition(".")[2] != name:
        raise UserError(f"{rule}, got {found.name if isinstance(found, Record) else type(found).__name__}")
    return found


def _pickled(path: Path) -> bytes:
    if not zipfile.is_zipfile(path):
        if path.stat().st_size > MAX_BYTES:
            raise UserError("it is too large")
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        (entry,) = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
        if entry.file_size > MAX_BYTES:
            raise UserError("it is too large")
        return archive.read(entry)


def write_record(name: str, attributes: dict[str, Any]) -> bytes:
    """A pickle of an object of a class that is not installed here.

    Args:
        name: `module.Class`.
        attributes: plain values, dictionaries and `Global`s.
    """
    return b"\x80\x02" + _opcodes(Global(name)) + b")\x81" + _opcodes(attributes) + b"b."


class Global(str):
    """The name of a class, where a pickle refers to the class itself."""

    __slots__ = ()


def _opcodes(value: Any) -> bytes:
    """The instructions that put a value on the stack of whoever reads the pickle."""
    if isinstance(value, Global):
        module, _, name = value.rpartition(".")
        return f"c{module}\n{name}\n".encode()
    if isinstance(value, dict):
        return b"}(" + b"".join(_opcodes(part) for item in value.items() for part in item) + b"u"
    if isinstance(value, list | tuple):
        return b"(" + b"".join(map(_opcodes, value)) + (b"l" if isinstance(value, list) else b"t")
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    assert isinstance(value, str), type(value)
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
