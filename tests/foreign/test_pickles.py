"""Hostile pickles in every place where an import reads one: refused in one line, and nothing is executed."""

from __future__ import annotations

import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.command_line import Refusal
from helpers.malicious import Malicious
from trajectory.errors import UserError
from trajectory.foreign.pickles import STAND_INS, Global, Record, read_pickle, write_record

MODELS = Path(__file__).parent / "models"
PLACES = [
    ("jannerm", "model_config.pkl"),
    ("jannerm", "data_config.pkl"),
    ("jannerm", "discretizer.pkl"),
    ("jannerm", "thresholds.npy"),
    ("jannerm", "state_20.pt"),
    ("howuhh", "discretizer.pt"),
    ("howuhh", "model_last.pt"),
]


def in_an_array(evil: Malicious) -> bytes:
    return pickle.dumps(np.array([evil], dtype=object))


def in_a_config(evil: Malicious) -> bytes:
    """Where a configuration of the original has a value."""
    name = b"X" + struct.pack("<I", 3) + b"env"
    plain = pickle.dumps(evil, protocol=2)[2:-1]
    whole = write_record("trajectory.utils.config.Config", {"_class": Global("builtins.int"), "_dict": {"env": None}})
    return whole.replace(b"builtins\nint", b"trajectory.models.transformers\nGPT").replace(name + b"N", name + plain)


FORMS: dict[str, Callable[[Malicious], bytes]] = {
    "protocol 0": lambda evil: pickle.dumps(evil, protocol=0),
    "protocol 4": lambda evil: pickle.dumps({"a": [evil]}, protocol=4),
    "in an array": in_an_array,
    "in a config": in_a_config,
}


def zipped(data: bytes, path: Path) -> None:
    """As torch.save writes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "file"), PLACES)
def test_a_hostile_pickle_is_refused_in_every_place(
    refusal: Refusal, tmp_path: Path, mark: Path, name: str, file: str, form: str
) -> None:
    path = Path(shutil.copytree(MODELS / name, tmp_path / name))
    if file == "discretizer.pkl":
        (path / "thresholds.npy").unlink()
    data = FORMS[form](Malicious(mark))
    writers: list[Callable[[], Any]] = [lambda: (path / file).write_bytes(data)]
    if file.endswith(".pt"):
        writers.append(lambda: zipped(data, path / file))
    for write in writers:
        write()
        line = refusal("import_checkpoint", f"source={name}", f"path={path}", "env=hopper")
        assert file in line
        assert "weights_only=False" not in line
        assert "allow_pickle" not in line
        assert not mark.exists()


NAMES = [
    *("builtins.eval", "os.system", "posix.system", "subprocess.Popen", "builtins.getattr", "functools.partial"),
    *("trajectory.errors.UserError", "trajectory.model.checkpoint.write_checkpoint", "numpy.load", "torch.load"),
    *("numpy.dtype.__class__", "trajectory.utils.config.Config.__init__", "collections.OrderedDict.__reduce__"),
    *("operator.attrgetter", "copyreg._reconstructor", "builtins.type", "numpy.f2py.os.system"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_not_listed_ends_the_reading(tmp_path: Path, name: str) -> None:
    """By every instruction that looks up a name; dotted names are not walked along."""
    module, _, attribute = name.rpartition(".")
    texts = [b"X" + struct.pack("<I", len(part)) + part.encode() for part in (module, attribute)]
    path = tmp_path / "config.pkl"
    for data in (
        f"c{module}\n{attribute}\n.".encode(),
        b"\x80\x04" + b"".join(texts) + b"\x93.",
        f"(i{module}\n{attribute}\n.".encode(),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match="nothing in it was run: it asks for"):
            read_pickle(path, "Config")


def test_stand_ins_are_classes_without_effects() -> None:
    """A pickle can call them, and set attributes of whatever is no class: so there is nothing else in the list."""
    for stand_in in STAND_INS.values():
        assert issubclass(stand_in, Record)
    reachable = {type(made) for made in (Record(), STAND_INS["numpy.core.multiarray._reconstruct"]())}
    assert all(issubclass(kind, Record) for kind in reachable)


@pytest.mark.parametrize(
    "data",
    [
        b"cnumpy.core.multiarray\n_reconstruct\n}X\x01\x00\x00\x00aNsb.",  # attributes of a stand-in
        b"ctrajectory.utils.config\nConfig\n)\x81}b.",  # no attributes at all
        b"\x80\x02K\x07.",  # a number
        b"\x80\x02]q\x00h\x00a.",  # a list in itself
        b"",
        b"PK\x03\x04 not a zip",
        b"(" * 10_000,
    ],
)
def test_what_is_no_such_object_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "config.pkl"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"config\.pkl must be a pickle of GPT"):
        read_pickle(path, "GPT")


def test_an_array_that_promises_more_than_it_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "discretizer.pkl"
    data = pickle.dumps(np.arange(4.0))
    state = b"ctrajectory.utils.discretization\nQuantileDiscretizer\n)\x81}X\x01\x00\x00\x00a"
    path.write_bytes(b"\x80\x04" + state + data[2:-1] + b"sb.")
    assert read_pickle(path, "QuantileDiscretizer").attributes["a"].numbers.tolist() == [0, 1, 2, 3]
    path.write_bytes(b"\x80\x04" + state + data[2:-1].replace(b"K\x04\x85", b"K\x05\x85") + b"sb.")
    with pytest.raises(UserError, match="an array must have the bytes of its numbers"):
        read_pickle(path, "QuantileDiscretizer")


def test_what_is_written_is_what_python_reads(tmp_path: Path) -> None:
    values = {"text": "ä", "numbers": [1, -2, 3.5], "flags": (True, False, None), "nested": {"a": {}}}
    path = tmp_path / "config.pkl"
    path.write_bytes(write_record("trajectory.utils.config.Config", {"_dict": values}))
    assert read_pickle(path, "Config").attributes == {"_dict": values}
    assert pickle.loads(write_record("types.SimpleNamespace", values)).__dict__ == values
