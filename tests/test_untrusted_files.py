"""Files that others made: whatever stands in them, reading them executes nothing."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from helpers.command_line import ROOT, TINY, Refusal, compose_config
from helpers.example_data import made_up_episodes, write_npz
from helpers.malicious import Malicious
from helpers.synthetic_data import Reader, random_episodes, source_of, write_episodes
from trajectory import TrajectoryAgent
from trajectory.config import without_missing
from trajectory.data.datamodule import TrajectoryDataModule
from trajectory.data.settings import TokenizerSettings
from trajectory.errors import UserError
from trajectory.files import CACHE_VARIABLE
from trajectory.model.checkpoint import write_checkpoint


def zipped(mark: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": {}, "hyper_parameters": Malicious(mark)}, buffer)
    return buffer.getvalue()


CHECKPOINTS = {
    "torch": zipped,
    "torch, before zip": lambda mark: legacy(mark),
    "pickle": lambda mark: pickle.dumps(Malicious(mark)),
    "pickle in a dictionary": lambda mark: pickle.dumps({"state_dict": Malicious(mark)}, protocol=2),
}


def legacy(mark: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Malicious(mark), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize("make", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_malicious_checkpoint_is_refused_by_evaluation_and_agent(
    refusal: Refusal, tmp_path: Path, mark: Path, make: Callable[[Path], bytes]
) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(make(mark))
    line = refusal("evaluate", f"checkpoint={path}")
    assert line.startswith(f"error: checkpoint must be a complete checkpoint of this project, got '{path}'")
    assert "weights_only=False" not in line
    with pytest.raises(UserError):
        TrajectoryAgent.from_checkpoint(path)
    assert not mark.exists()


def test_a_malicious_checkpoint_out_of_an_artifact_is_refused(refusal: Refusal, tmp_path: Path, mark: Path) -> None:
    """As Weights & Biases keeps and gives out the files of an artifact."""
    import wandb

    (tmp_path / "made").write_bytes(zipped(mark))
    artifact = wandb.Artifact("model-of-others", type="model")
    artifact.add_file(str(tmp_path / "made"), name="last.ckpt")
    path = artifact.manifest.entries["last.ckpt"].local_path
    assert path != str(tmp_path / "made")
    line = refusal("evaluate", f"checkpoint={path}")
    assert line.startswith("error: checkpoint must be a complete checkpoint of this project, got ")
    assert not mark.exists()


def test_a_malicious_checkpoint_with_a_checksum_is_refused_by_the_training_that_would_continue_it(
    tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trajectory.commands.train import train

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    folder = tmp_path / "run"
    folder.mkdir()
    config = compose_config("train", *TINY, "resume=true")
    (folder / "config.yaml").write_text(json.dumps(without_missing(config)))
    write_checkpoint({"process": Malicious(mark)}, folder / "last.ckpt")
    with pytest.raises(UserError, match=r"nothing in it was run"):
        train(config, folder)
    assert not mark.exists()


def test_a_malicious_npz_is_refused(refusal: Refusal, tmp_path: Path, mark: Path) -> None:
    folder = write_npz(tmp_path / "walks", made_up_episodes(1))
    (path,) = folder.iterdir()
    with np.load(path) as file:
        columns: dict[str, Any] = dict(file)
    columns["rewards"] = np.array([Malicious(mark)] * len(columns["rewards"]), dtype=object)
    np.savez(path, **columns)
    line = refusal(
        "train", "env=gym", "env.id=Pendulum-v1", "dataset=own", f"dataset.path={folder}", "dataset.id=me/pendulum/a-v0"
    )
    assert str(path) in line
    assert not mark.exists()


def test_a_malicious_hdf5_is_refused(refusal: Refusal, tmp_path: Path, mark: Path) -> None:
    """HDF5 has no pickles of its own; as bytes they stay bytes."""
    path = tmp_path / "hopper.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"] = np.zeros((3, 11), np.float32)
        file["actions"] = np.zeros((3, 3), np.float32)
        file["rewards"] = np.array([np.void(pickle.dumps(Malicious(mark)))] * 3)
        file["terminals"] = np.zeros(3, bool)
    line = refusal("train", "dataset=d4rl", f"dataset.path={path}")
    assert "must hold numbers" in line
    path.write_bytes(pickle.dumps(Malicious(mark)))
    assert "complete HDF5 file" in refusal("train", "dataset=d4rl", f"dataset.path={path}")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["tokens.npy", "episodes.npz"])
def test_malicious_tokens_in_the_cache_are_made_anew(
    tmp_path: Path, mark: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even with the hashes that belong to them."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    path = write_episodes(tmp_path / "episodes.npz", random_episodes([40, 30], [True, False]))

    def setup(reader: Reader) -> torch.Tensor:
        data = TrajectoryDataModule(source_of(path, reader), TokenizerSettings(bins=20), window=5, batch_size=8, seed=0)
        data.setup()
        assert data.windows is not None
        return data.windows.tokens.clone()

    tokens = setup(Reader())
    (entry,) = (tmp_path / "cache").iterdir()
    evil = np.array([Malicious(mark)], dtype=object)
    if name == "tokens.npy":
        np.save(entry / name, evil)
    else:
        np.savez(entry / name, ends=evil, terminated=evil, boundaries=evil, values=evil, counts=evil)
    hashes = {part.name: hashlib.sha256(part.read_bytes()).hexdigest() for part in entry.iterdir()}
    (entry / "sha256.json").write_text(json.dumps({key: hashes[key] for key in hashes if key != "sha256.json"}))
    again = Reader()
    assert torch.equal(setup(again), tokens)
    assert again.times == 1
    assert not mark.exists()


def test_nothing_that_could_execute_a_file_stands_in_the_source() -> None:
    """Checkpoints are read in one place, with `weights_only`; one other unpickles, into inert records."""
    dangerous = re.compile(
        r"weights_only ?= ?False|allow_pickle ?= ?True|pickle\.loads?\b|import pickle|joblib|yaml\.(unsafe_)?load\("
    )
    readers, unpicklers = [], []
    for path in sorted((ROOT / "src").rglob("*.py")):
        text = path.read_text()
        assert not dangerous.search(text), path
        unpicklers += [path.name for _ in re.findall(r"\bUnpickler\b", text)]
        readers += [(path.name, call) for call in re.findall(r"torch\.load\((?:[^()]|\([^()]*\))*\)", text)]
    assert [name for name, _ in readers] == ["checkpoint.py"]
    assert "weights_only=True" in readers[0][1]
    assert set(unpicklers) == {"pickles.py"}
