"""`files.py` and the files of checkpoints: there as a whole or not at all, and held against a checksum."""

from __future__ import annotations

import resource
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from trajectory.errors import UserError
from trajectory.files import write_file
from trajectory.model.checkpoint import read_checkpoint, write_checkpoint

CONTENT: dict[str, Any] = {"state_dict": {"weight": torch.arange(50.0)}, "global_step": 7}


@contextmanager
def full_disk(most_bytes: int) -> Generator[None]:
    """No file may grow beyond that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_file(path, "first")
    write_file(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(CONTENT, path)
    before = path.read_bytes()
    with full_disk(1_000), pytest.raises(UserError) as error:
        write_checkpoint({"state_dict": torch.zeros(10_000)}, path)
    assert str(path) in str(error.value)
    assert "room on its disk" in str(error.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_lost_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run/results\.json must be in a folder that can be written.*No such file"):
        write_file(tmp_path / "run" / "results.json", "{}")


def test_a_checkpoint_is_a_file_of_torch_and_a_zip_file_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(CONTENT, path)
    for content in (read_checkpoint(path), torch.load(path, weights_only=True)):
        assert torch.equal(content["state_dict"]["weight"], CONTENT["state_dict"]["weight"])
        assert content["global_step"] == 7
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
    torch.save(CONTENT, path)  # as an earlier version of this project wrote it
    assert read_checkpoint(path)["global_step"] == 7


def test_any_changed_byte_and_any_lost_end_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(CONTENT, path)
    whole = path.read_bytes()
    damaged = [whole[:length] for length in range(len(whole))]
    damaged += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"^checkpoint must be a complete checkpoint of this project, got "):
            read_checkpoint(path)


def test_the_checkpoint_before_is_offered(tmp_path: Path) -> None:
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    last.write_bytes(b"PK")
    with pytest.raises(UserError) as error:
        read_checkpoint(last)
    assert "previous" not in str(error.value)
    write_checkpoint(CONTENT, previous)
    with pytest.raises(UserError, match=rf"the one before it is there: checkpoint={previous}$"):
        read_checkpoint(last)


def test_a_checkpoint_with_old_names_is_read_with_those_of_today(tmp_path: Path) -> None:
    optimizer, critic = {"average_decay": 0.9, "betas": [0.9, 0.95]}, {"target_rate": 0.01}
    weights = {"gpt.head": torch.zeros(2), "average.head": torch.ones(2)}
    content = {"state_dict": weights, "hyper_parameters": {"optimizer": optimizer, "critic": critic}}
    write_checkpoint(content, tmp_path / "old.ckpt")
    found = read_checkpoint(tmp_path / "old.ckpt")
    assert {name: tensor.tolist() for name, tensor in found["state_dict"].items()} == {
        "gpt.head": [0.0, 0.0],
        "ema.head": [1.0, 1.0],
    }
    assert found["hyper_parameters"] == {
        "optimizer": {"ema_decay": 0.9, "betas": [0.9, 0.95]},
        "critic": {"tau": 0.01},
    }
