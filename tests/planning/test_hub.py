"""Models pushed to a hub on this machine and pulled from it, by processes: the client reads its variables once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.checkpoints import same
from helpers.command_line import ROOT, run_main
from helpers.made_checkpoint import write_made_checkpoint
from helpers.model_hub import ModelHub, serve_model_hub
from trajectory.files import CARD, WEIGHTS
from trajectory.model.checkpoint import load_checkpoint

NAME = "lab/hopper"
CHILD = """
import json, sys
from trajectory import TrajectoryAgent
from trajectory.errors import UserError

for code in json.load(sys.stdin):
    try:
        print(json.dumps(eval(code)))
    except UserError as error:
        print(json.dumps(f"refused: {error}"))
"""


QUICK = (
    *("evaluation.max_steps=5", "evaluation.episodes=1", "evaluation.video=false"),
    *("logger=csv", "runtime.threads=1"),
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_made_checkpoint(tmp_path_factory.mktemp("made") / "last.ckpt")


@pytest.fixture(scope="module")
def hub() -> Iterator[ModelHub]:
    with serve_model_hub() as hub:
        yield hub


def variables(hub: ModelHub | None, folder: Path, **more: str) -> dict[str, str]:
    """Of a client that knows this hub alone and keeps its cache in a folder."""
    url = hub.url if hub else "http://127.0.0.1:9"  # where nobody listens
    local = {"HF_ENDPOINT": url, "HF_HOME": str(folder / "client"), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return local | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "2"} | more


def ask(*codes: str, **environment: str) -> list[Any]:
    """What each expression gives in a process of its own, or the line with which it is refused."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "WANDB_"))}
    process = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps(codes),
        env={**kept, **environment},
        cwd=ROOT / "src",
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()]


@pytest.fixture(scope="module")
def pushed(hub: ModelHub, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name that a push returns."""
    code = f"TrajectoryAgent.from_checkpoint({str(checkpoint)!r}).push_to_hub({NAME!r})"
    folder = tmp_path_factory.mktemp("client")
    login = "__import__('os').environ.update(HF_TOKEN='hf_secret')"
    without, _, name = ask(code, login, code, **variables(hub, folder))
    assert without.startswith(f"refused: hf://{NAME} cannot be reached: ")
    return name


def test_a_push_leaves_safetensors_and_cards_alone(
    hub: ModelHub, pushed: str, checkpoint: Path, tmp_path: Path
) -> None:
    (commit, files) = hub.repositories[NAME].popitem()
    hub.repositories[NAME][commit] = files
    assert pushed == f"hf://{NAME}@{commit}"
    assert set(files) == {CARD, WEIGHTS, "README.md"}
    readme = files["README.md"].decode()
    assert readme.startswith("---\nlicense: ")
    assert "library_name: trajectory-transformer" in readme
    assert "# Trajectory Transformer for Hopper-v5" in readme
    for name in (CARD, WEIGHTS):
        (tmp_path / name).write_bytes(files[name])
    assert same(load_checkpoint(tmp_path).tensors(), load_checkpoint(checkpoint).tensors())


def test_a_model_of_the_hub_acts_and_is_evaluated_with_its_commit_in_the_results(
    hub: ModelHub, pushed: str, checkpoint: Path, tmp_path: Path
) -> None:
    act = "{}.act(__import__('numpy').linspace(-1, 1, 11)).tolist()"
    loads = [f"TrajectoryAgent.from_checkpoint({str(checkpoint)!r})", f"TrajectoryAgent.from_pretrained({NAME!r})"]
    pinned = f"__import__('trajectory.names').names.locate({pushed!r}).recorded"
    one, other, recorded = ask(*map(act.format, loads), pinned, **variables(hub, tmp_path))
    assert one == other
    assert recorded == pushed
    newest = hub.commit(NAME, {"README.md": b"changed since"})
    overrides = (f"checkpoint=hf://{NAME}", *QUICK, "hydra.run.dir=run")
    process = run_main("evaluate", *overrides, folder=tmp_path, fresh=True, **variables(hub, tmp_path))
    assert process.returncode == 0, process.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text())["checkpoint"] == f"hf://{NAME}@{newest}"
    # without a network there is what was downloaded, and nothing else
    offline = variables(None, tmp_path, HF_HUB_OFFLINE="1")
    there, refused = ask(act.format(loads[1]), "TrajectoryAgent.from_pretrained('lab/other')", **offline)
    assert there == one
    reason = "HF_HUB_OFFLINE is set, and it is not in the cache"
    assert refused == f"refused: checkpoint=hf://lab/other cannot be reached: {reason}"


def test_what_the_hub_does_not_have_is_refused_in_one_line(hub: ModelHub, pushed: str, tmp_path: Path) -> None:
    hub.commit("lab/pickles", {"pytorch_model.bin": b"\x80\x04."})
    damaged = {**hub.find(NAME, "main")[1], WEIGHTS: b"changed"}  # ty: ignore
    hub.commit("lab/damaged", damaged)
    names = [
        "lab/nosuch",
        f"{NAME}@nosuch",
        "lab/pickles",
        "lab/damaged",
        "hf://three/parts/name",
        "wandb://two/parts:x",
    ]
    said = ask(*(f"TrajectoryAgent.from_pretrained({name!r})" for name in names), **variables(hub, tmp_path))
    assert all(line.startswith("refused: ") and "\n" not in line for line in said)
    assert said[0].startswith("refused: checkpoint=hf://lab/nosuch cannot be reached: ")
    assert said[1].startswith(f"refused: checkpoint=hf://{NAME}@nosuch cannot be reached: ")
    assert "must be a repository with card.json and model.safetensors, got" in said[2]
    assert "must be the weights of card.json, by their SHA-256" in said[3]
    assert "must be hf://user/name or hf://user/name@revision" in said[4]
    assert "must be wandb://entity/project/name:alias" in said[5]
    assert not any(path.suffix == ".bin" for path in (tmp_path / "client").rglob("*"))


def test_without_a_network_it_is_one_line(tmp_path: Path) -> None:
    process = run_main(
        "evaluate", "checkpoint=hf://lab/other", folder=tmp_path, fresh=True, **variables(None, tmp_path)
    )
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith("error: checkpoint=hf://lab/other cannot be reached: ")
    assert not list(tmp_path.glob("outputs/evaluate/evaluation/*"))


def test_an_agent_of_parts_cannot_be_pushed(checkpoint: Path) -> None:
    from trajectory import TrajectoryAgent

    agent = TrajectoryAgent.from_checkpoint(checkpoint)
    agent.checkpoint = None
    with pytest.raises(ValueError, match="push_to_hub must be of an agent that was made of a checkpoint"):
        agent.push_to_hub(NAME)
    assert np.isfinite(agent.act(np.zeros(11))).all()
