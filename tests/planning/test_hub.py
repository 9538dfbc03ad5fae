"""Models pushed to a hub on this machine and pulled from it, by processes: the client reads its variables once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.checkpoints import same
from helpers.command_line import ROOT, run_main
from helpers.made_checkpoint import write_made_checkpoint
from helpers.model_hub import LARGE, PART, ModelHub, serve_model_hub
from helpers.wandb_hub import KEY, serve_artifact
from trajectory.files import CARD, WEIGHTS
from trajectory.model.checkpoint import load_checkpoint

NAME = "lab/hopper"
EXPRESSIONS = ROOT / "tests" / "helpers" / "expressions.py"
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


def ask(*codes: str, folder: Path, **variables: str) -> list[Any]:
    """What each expression gives in a process of its own, or the line with which it is refused."""
    process = run_main(EXPRESSIONS, json.dumps(codes), folder=folder, **variables)
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()]


@pytest.fixture(scope="module")
def pushed(hub: ModelHub, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name that a push returns."""
    code = f"TrajectoryAgent.from_checkpoint({str(checkpoint)!r}).push_to_hub({NAME!r})"
    folder = tmp_path_factory.mktemp("client")
    login = "__import__('os').environ.update(HF_TOKEN='hf_secret')"
    without, _, name = ask(code, login, code, folder=folder, **variables(hub, folder))
    assert without.startswith(f"refused: hf://{NAME} cannot be reached: ")
    return name


def test_a_push_leaves_safetensors_and_cards_alone(
    hub: ModelHub, pushed: str, checkpoint: Path, tmp_path: Path
) -> None:
    (commit, files) = next(iter(hub.repositories[NAME].items()))
    assert pushed == f"hf://{NAME}@{commit}"
    assert set(files) == {CARD, WEIGHTS, "README.md"}
    readme = files["README.md"].decode()
    assert readme.startswith("---\nlicense: ")
    assert "library_name: trajectory-transformer" in readme
    assert "# Trajectory Transformer for Hopper-v5" in readme
    for name in (CARD, WEIGHTS):
        (tmp_path / name).write_bytes(files[name])
    assert same(load_checkpoint(tmp_path).tensors(), load_checkpoint(checkpoint).tensors())


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with more weights than a hub keeps in git."""
    path = write_made_checkpoint(tmp_path_factory.mktemp("large") / "last.ckpt", "model.n_embd=512")
    assert path.stat().st_size > LARGE + PART
    return path


def test_large_weights_travel_by_lfs_in_parts_and_come_back_equal(hub: ModelHub, large: Path, tmp_path: Path) -> None:
    name = "lab/large"
    push = f"TrajectoryAgent.from_checkpoint({str(large)!r}).push_to_hub({name!r})"
    found = "str(locate({!r}).path)"
    start = len(hub.requests)
    client = variables(hub, tmp_path, HF_TOKEN="hf_secret")
    pushed, folder, again = ask(push, found.format(f"hf://{name}"), push, folder=tmp_path, **client)
    weights = hub.files(name)[WEIGHTS]
    oid = hashlib.sha256(weights).hexdigest()
    parts = [f"PUT /lfs/{oid}/{number}" for number in range(1, -(-len(weights) // PART) + 1)]
    uploads = [request for request in hub.requests[start:] if "lfs" in request]
    batch = f"POST /{name}.git/info/lfs/objects/batch"
    # the second push finds the weights there
    assert uploads == [batch, *parts, f"POST /lfs/{oid}/complete", f"POST /lfs/{oid}/verify", batch]
    assert len(parts) > 2
    assert (Path(folder) / WEIGHTS).read_bytes() == weights
    assert same(load_checkpoint(folder).tensors(), load_checkpoint(large).tensors())
    assert again != pushed


def test_small_weights_travel_by_lfs_in_one_piece(hub: ModelHub, pushed: str) -> None:
    oid = hashlib.sha256(hub.repositories[NAME][pushed.partition("@")[2]][WEIGHTS]).hexdigest()
    assert hub.requests.count(f"PUT /lfs/{oid}") == 1
    assert hub.requests.count(f"POST /lfs/{oid}/verify") == 1


def test_an_upload_that_arrives_damaged_is_refused_and_makes_no_commit(
    hub: ModelHub, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "loses", True)
    push = f"TrajectoryAgent.from_checkpoint({str(checkpoint)!r}).push_to_hub('lab/lost', half=True)"
    (line,) = ask(push, folder=tmp_path, **variables(hub, tmp_path, HF_TOKEN="hf_secret"))
    assert line.startswith("refused: hf://lab/lost cannot be reached: ")
    assert "\n" not in line
    assert hub.repositories["lab/lost"] == {}


REFUSED = {  # name -> what the line says
    "lab/nosuch": "checkpoint=hf://lab/nosuch cannot be reached: ",
    f"{NAME}@nosuch": f"checkpoint=hf://{NAME}@nosuch cannot be reached: ",
    "lab/pickles": "must be a repository with card.json and model.safetensors, got",
    "lab/damaged": "must be the weights of card.json, by their SHA-256",
    "hf://three/parts/name": "must be hf://user/name or hf://user/name@revision",
    "wandb://two/parts:x": "must be wandb://entity/project/name:alias",
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a client keeps what it downloads."""
    return tmp_path_factory.mktemp("client")


@pytest.fixture(scope="module")
def answers(hub: ModelHub, pushed: str, checkpoint: Path, client: Path) -> dict[str, Any]:
    """What a client finds on the hub, after its model has a newer commit, and there are models that are none."""
    hub.commit("lab/pickles", {"pytorch_model.bin": b"\x80\x04."})
    hub.commit("lab/damaged", {**hub.files(NAME), WEIGHTS: b"changed"})
    newest = hub.commit(NAME, {"README.md": b"changed since"})
    act, recorded = "{}.act(__import__('numpy').linspace(-1, 1, 11)).tolist()", "locate({!r}).recorded"
    codes = {
        "of the file": act.format(f"TrajectoryAgent.from_checkpoint({str(checkpoint)!r})"),
        "of the hub": act.format(f"TrajectoryAgent.from_pretrained({pushed!r})"),
        "pinned": recorded.format(pushed),
        "newest": recorded.format(f"hf://{NAME}"),
        **{name: f"TrajectoryAgent.from_pretrained({name!r})" for name in REFUSED},
    }
    found = dict(zip(codes, ask(*codes.values(), folder=client, **variables(hub, client)), strict=True))
    assert found["newest"] == f"hf://{NAME}@{newest}"
    return found


def test_a_model_of_the_hub_acts_as_that_of_the_file_and_is_known_by_its_commit(
    answers: dict[str, Any], pushed: str
) -> None:
    assert answers["of the hub"] == answers["of the file"]
    assert answers["pinned"] == pushed != answers["newest"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_hub_does_not_have_is_refused_in_one_line(answers: dict[str, Any], client: Path, name: str) -> None:
    line = answers[name]
    assert line.startswith("refused: ")
    assert REFUSED[name] in line
    assert "\n" not in line
    assert not any(path.suffix == ".bin" for path in client.rglob("*"))


@pytest.mark.usefixtures("answers")
def test_without_a_network_there_is_what_was_downloaded_and_else_one_line(
    pushed: str, client: Path, tmp_path: Path
) -> None:
    """With the commit in the results."""
    offline = variables(None, client, HF_HUB_OFFLINE="1")
    overrides = (f"checkpoint={pushed}", *QUICK, "hydra.run.dir=run")
    process = run_main("evaluate", *overrides, folder=tmp_path, **offline)
    assert process.returncode == 0, process.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text())["checkpoint"] == pushed
    reason = "cannot be reached: HF_HUB_OFFLINE is set, and it is not in the cache"
    for variable, said in ((offline, reason), (variables(None, client), "cannot be reached: ")):
        process = run_main("evaluate", "checkpoint=hf://lab/other", folder=tmp_path, **variable)
        assert process.returncode == 1
        assert process.stderr.splitlines()[-1].startswith(f"error: checkpoint=hf://lab/other {said}")
        assert not list(tmp_path.glob("outputs/evaluate/evaluation/*"))


def test_an_artifact_of_wandb_is_found_by_its_alias_and_known_by_its_version(checkpoint: Path, tmp_path: Path) -> None:
    act = "{}.act(__import__('numpy').linspace(-1, 1, 11)).tolist()"
    codes = (
        act.format(f"TrajectoryAgent.from_checkpoint({str(checkpoint)!r})"),
        act.format("TrajectoryAgent.from_pretrained('wandb://me/lab/model:best')"),
        "locate('wandb://me/lab/model:best').recorded",
        "locate('wandb://me/lab/nosuch:best')",
        "__import__('os').environ.update(WANDB_MODE='offline')",
        "locate('wandb://me/lab/model:best')",
    )
    with serve_artifact({"last.ckpt": checkpoint.read_bytes()}) as url:
        found = ask(
            *codes, folder=tmp_path, NO_PROXY="127.0.0.1", WANDB_BASE_URL=url, WANDB_API_KEY=KEY, WANDB_SILENT="true"
        )
    assert found[1] == found[0]
    assert found[2] == "wandb://me/lab/model:v3"
    assert found[3].startswith("refused: checkpoint=wandb://me/lab/nosuch:best cannot be reached: ")
    assert found[5] == (
        "refused: checkpoint=wandb://me/lab/model:best needs W&B, which WANDB_MODE=offline switches off"
    )


def test_an_agent_of_parts_cannot_be_pushed(checkpoint: Path) -> None:
    from trajectory import TrajectoryAgent

    agent = TrajectoryAgent.from_checkpoint(checkpoint)
    agent.checkpoint = None
    with pytest.raises(ValueError, match="push_to_hub must be of an agent that was made of a checkpoint"):
        agent.push_to_hub(NAME)
    assert np.isfinite(agent.act(np.zeros(11))).all()
