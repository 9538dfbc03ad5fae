"""A model as a folder of safetensors and a card: it computes the same, and a damaged one is refused in one line."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.checkpoints import same
from helpers.command_line import Refusal, run_main_here
from helpers.made_checkpoint import write_made_checkpoint
from trajectory import TrajectoryAgent
from trajectory.errors import UserError
from trajectory.files import CARD, WEIGHTS
from trajectory.model.checkpoint import load_checkpoint
from trajectory.model.exported import write_export

EVALUATION = ("evaluation.episodes=1", "evaluation.max_steps=10", "evaluation.video=false", "runtime.threads=1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a critic."""
    return write_made_checkpoint(tmp_path_factory.mktemp("made") / "run" / "last.ckpt")


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    process = run_main_here("export", f"checkpoint={trained}", "to=models/tiny", folder=trained.parents[1])
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == "models/tiny"
    return trained.parents[1] / "models" / "tiny"


def test_an_export_holds_the_checkpoints_weights_bins_and_critic(trained: Path, exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {CARD, WEIGHTS}
    assert [path.name for path in exported.parent.iterdir()] == ["tiny"]
    original, again = load_checkpoint(trained), load_checkpoint(exported)
    assert original.critic is not None
    assert same(original.tensors(), again.tensors())
    assert again.step == original.step == 6
    card = json.loads((exported / CARD).read_text())
    assert card["weights"]["sha256"] == hashlib.sha256((exported / WEIGHTS).read_bytes()).hexdigest()
    assert card["weights"]["parameters"] == sum(value.numel() for value in original.gpt.state_dict().values())


def test_an_export_is_evaluated_as_its_checkpoint_is(trained: Path, exported: Path) -> None:
    returns = {}
    for name, path in (("checkpoint", trained), ("export", exported)):
        overrides = (f"checkpoint={path}", *EVALUATION, "logger=csv", f"hydra.run.dir={name}")
        process = run_main_here("evaluate", *overrides, folder=trained.parents[1])
        assert process.returncode == 0, process.stderr
        results = json.loads((trained.parents[1] / name / "results.json").read_text())
        assert results["checkpoint"] == str(path)
        returns[name] = [episode["return"] for episode in results["episodes"]]
    assert returns["checkpoint"] == returns["export"]


def test_an_agent_of_an_export_acts_as_that_of_its_checkpoint(trained: Path, exported: Path) -> None:
    observation = torch.linspace(-1, 1, 11).numpy()
    agents = [TrajectoryAgent.from_checkpoint(trained), TrajectoryAgent.from_pretrained(str(exported))]
    one, other = (agent.act(observation) for agent in agents)
    assert (one == other).all()


def test_half_precision_rounds_the_weights_and_keeps_the_bins(trained: Path, exported: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(trained)
    write_export(checkpoint.tensors(), checkpoint.hyperparameters, checkpoint.step, tmp_path / "half", half=True)
    halved = load_checkpoint(tmp_path / "half")
    for name, value in checkpoint.tensors().items():
        rounded = value.half().float() if name.startswith(("gpt.", "critic.")) else value
        assert torch.equal(halved.tensors()[name], rounded), name
    assert (tmp_path / "half" / WEIGHTS).stat().st_size < 0.7 * (exported / WEIGHTS).stat().st_size
    large = {**checkpoint.tensors(), "gpt.position_embedding": torch.full_like(checkpoint.gpt.position_embedding, 1e6)}
    with pytest.raises(UserError, match=r"half must be false: gpt\.position_embedding"):
        write_export(large, checkpoint.hyperparameters, checkpoint.step, tmp_path / "large", half=True)
    assert not (tmp_path / "large").exists()


def rewritten(folder: Path, data: bytes) -> None:
    """Other weights, with a card that has their hash."""
    (folder / WEIGHTS).write_bytes(data)
    card = json.loads((folder / CARD).read_text())
    card["weights"]["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / CARD).write_text(json.dumps(card))


def changed(folder: Path, section: str, **values: Any) -> None:
    card = json.loads((folder / CARD).read_text())
    card["hyper_parameters"][section] |= values
    (folder / CARD).write_text(json.dumps(card))


HEADER = b'{"gpt.head":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (lambda path: (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:-9]), "by their SHA-256"),
    "truncated, with its hash": (
        lambda path: rewritten(path, (path / WEIGHTS).read_bytes()[:-9]),
        "must be a complete safetensors file",
    ),
    "a header of absurd length": (
        lambda path: rewritten(path, struct.pack("<Q", 2**62) + b"{}"),
        "must be a complete safetensors file",
    ),
    "a tensor of absurd size": (
        lambda path: rewritten(path, struct.pack("<Q", len(HEADER)) + HEADER),
        "must be a complete safetensors file",
    ),
    "empty": (lambda path: rewritten(path, b""), "must be a complete safetensors file"),
    "no weights": (lambda path: (path / WEIGHTS).unlink(), "must be a complete safetensors file"),
    "a hash that does not fit": (lambda path: changed_weight(path), "by their SHA-256"),
    "no JSON": (lambda path: (path / CARD).write_text("{"), "must be the card of an export, in JSON"),
    "nested without end": (lambda path: (path / CARD).write_text("[" * 200_000), "must be the card of an export"),
    "a list": (lambda path: (path / CARD).write_text("[]"), "a card with keys"),
    "without steps": (lambda path: (path / CARD).write_text('{"format": 1}'), "weights must be of type dict"),
    "of the future": (
        lambda path: (path / CARD).write_text(json.dumps({**json.loads((path / CARD).read_text()), "format": 9})),
        "format must be at most 1: update this project",
    ),
    "another width": (lambda path: changed(path, "model", n_embd=32), "of the shape"),
    "an absurd width": (lambda path: changed(path, "model", n_embd=2**20, n_head=1), "of the shape"),
    "absurdly many layers": (lambda path: changed(path, "model", n_layer=2**40), "layers in"),
    "an absurd window": (
        lambda path: changed(path, "model", positions="absolute", window=2**40, attention_window=None),
        "of the shape",
    ),
    "a model that cannot be": (lambda path: changed(path, "model", n_head=7), "model.n_embd must be a multiple"),
    "a key of the future": (lambda path: changed(path, "model", quantum=True), "unexpected keyword argument"),
}


def changed_weight(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_export_is_refused_in_one_line(
    refusal: Refusal, exported: Path, tmp_path: Path, damage: Callable[[Path], Any], said: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in exported.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    damage(folder)
    line = refusal("evaluate", f"checkpoint={folder}", "logger=csv")
    assert line.startswith("error: ")
    assert said in line


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(refusal: Refusal, trained: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    for overrides, said in (
        ((f"to={full}",), "to must be a folder that is new or empty"),
        ((f"to={full / 'mine.txt'}",), "to must be a folder"),
        ((f"to={tmp_path / 'new'}", "format=pickle"), "format must be one of safetensors, jannerm"),
        ((f"to={tmp_path / 'new'}", "format=jannerm"), "one that was imported from there"),
        ((f"to={tmp_path / 'new'}", "format=jannerm", "half=true"), "half must be false"),
        ((f"to={tmp_path / 'new'}", "half=1"), "half must be true or false"),
    ):
        assert said in refusal("export", f"checkpoint={trained}", *overrides)
    assert [path.name for path in full.iterdir()] == ["mine.txt"]
