"""Published datasets: the store first, then a hub on this machine; what does not fit never enters the store."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.command_line import ROOT, run_main
from helpers.example_data import HOPPER, contents, made_up_episodes, save
from helpers.hub import serve_hub
from trajectory.data.published import _check_network, ensure_published
from trajectory.data.store import load_episodes
from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import UserError

ID = "mujoco/hopper/medium-v0"
WALKER = EnvironmentSettings("walker2d", "Walker2d-v5")
# the client reads its variables once, when it is imported: a process of its own asks for all of these, each into a
# store of its own
CASES: dict[str, tuple[str, EnvironmentSettings]] = {
    "good": (ID, HOPPER),
    "good again": (ID, HOPPER),
    "other dimensions": (ID, WALKER),
    "nan": ("mujoco/hopper/broken-v0", HOPPER),
    "truncated": ("mujoco/hopper/truncated-v0", HOPPER),
    "not published": ("mujoco/hopper/nosuch-v0", HOPPER),
    "another version": ("mujoco/hopper/medium-v3", HOPPER),
    "another repository": ("nobody/hopper/medium-v0", HOPPER),
}
CHILD = """
import json, os, sys
from trajectory.data.published import ensure_published
from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import UserError

cases, results = json.load(sys.stdin), {}
for name, (dataset_id, environment, store) in cases.items():
    os.environ["MINARI_DATASETS_PATH"] = store
    results[name] = None
    try:
        ensure_published(dataset_id, EnvironmentSettings(**environment))
    except UserError as error:
        results[name] = str(error)
with open(sys.argv[1], "w") as file:
    json.dump(results, file)
"""


def publish(folder: Path) -> Path:
    """The store that a hub will serve: a good dataset, one with a number that is none, and one cut in half."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        save(ID, made_up_episodes(12, HOPPER), HOPPER)
        bad = made_up_episodes(3, HOPPER)
        bad[1].actions[0, 2] = np.nan
        save("mujoco/hopper/broken-v0", bad, HOPPER)
        save("mujoco/hopper/truncated-v0", made_up_episodes(3, HOPPER), HOPPER)
    data = folder / "mujoco" / "hopper" / "truncated-v0" / "data" / "main_data.hdf5"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    return folder


@dataclass(frozen=True)
class Downloads:
    """What became of all cases: messages, None where it went well, and what the hub was asked for."""

    folder: Path
    messages: dict[str, str | None]
    requests: list[str]

    def store(self, case: str) -> Path:
        return self.folder / case.removesuffix(" again")


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Downloads:
    folder = tmp_path_factory.mktemp("downloads")
    found = Downloads(folder, {}, [])
    cases = {name: (id_, asdict(env), str(found.store(name))) for name, (id_, env) in CASES.items()}
    with serve_hub(publish(folder / "published")) as hub:
        subprocess.run(
            [sys.executable, "-c", CHILD, str(folder / "results.json")],
            input=json.dumps(cases),
            env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "client"), "HF_HUB_OFFLINE": "0"}
            | {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"},
            cwd=ROOT / "src",
            text=True,
            check=True,
        )
    found.messages.update(json.loads((folder / "results.json").read_text()))
    found.requests.extend(hub.requests)
    return found


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine that nobody listens on, and that nobody else is given meanwhile."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def refused(dataset_id: Any = ID, environment: EnvironmentSettings = HOPPER) -> str:
    with pytest.raises(UserError) as error:
        ensure_published(dataset_id, environment)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_dataset_is_downloaded_once(downloads: Downloads, monkeypatch: pytest.MonkeyPatch) -> None:
    assert downloads.messages["good"] is None
    assert downloads.messages["good again"] is None
    store = downloads.store("good")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(store))
    assert contents(store / ID) == contents(downloads.folder / "published" / ID)
    assert load_episodes(ID).lengths.tolist() == list(range(1, 13))
    assert [path.name for path in store.iterdir()] == ["mujoco"], "nothing hidden stays behind"
    data = f"{ID.partition('/')[2]}/data/main_data.hdf5"
    into_good = [request for request in downloads.requests if request.startswith("GET") and request.endswith(data)]
    assert len(into_good) == 2, "once for a good case, once for that of other dimensions"


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("other dimensions", "must have the dimensions of Walker2d-v5, 17 observations and 6 actions, got 11 and 3"),
        ("nan", "must hold finite numbers only, got nan in action[2], episode 1, step 0"),
        ("truncated", "must be a complete Minari dataset: "),
        ("not published", "must be in the local Minari store or published: Couldn't find any version"),
        ("another version", "must be in the local Minari store or published: The dataset version"),
        ("another repository", "must be in the local Minari store or published: Couldn't find any version"),
    ],
)
def test_what_does_not_fit_never_enters_the_store(downloads: Downloads, case: str, words: str) -> None:
    message = downloads.messages[case]
    assert message is not None
    assert message.startswith(f"dataset.id='{CASES[case][0]}' {words}")
    assert "\n" not in message
    assert contents(downloads.store(case)) == {}


@pytest.mark.parametrize("dataset_id", ["medium", "../medium-v0", "hf://someone/hopper/medium-v0", ["medium-v0"]])
def test_what_cannot_be_an_id_is_not_asked_for(
    store: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int, dataset_id: Any
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    assert refused(dataset_id).startswith("dataset.id must be NAMESPACE/NAME-vN or NAME-vN")
    assert not store.exists()


def test_what_the_store_has_is_taken_without_a_network(
    store: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    save(ID, made_up_episodes(2, HOPPER), HOPPER)
    ensure_published(ID, HOPPER)


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ({"HF_ENDPOINT": "http://127.0.0.1:{port}"}, "127.0.0.1:{port} cannot be reached ("),
        ({"HF_ENDPOINT": "https://hub.invalid"}, "hub.invalid:443 cannot be reached ("),
    ],
    ids=["offline", "nobody listens", "no such host"],
)
def test_without_a_network_there_is_one_line_at_once(
    store: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int, variables: dict[str, str], problem: str
) -> None:
    for name in ("HF_HUB_OFFLINE", "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(port=closed_port))
    message = refused()
    assert f"dataset.id='{ID}' must be in the local Minari store {store} or on the network" in message
    assert problem.format(port=closed_port) in message
    assert f"minari download {ID}" in message
    assert "python src/collect.py env=hopper" in message
    assert not store.exists()


def test_behind_a_proxy_the_client_is_left_to_find_its_way(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:3128")
    monkeypatch.setenv("no_proxy", "")
    _check_network(ID)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(UserError, match="cannot be reached"):
        _check_network(ID)


class TestCommandLine:
    def test_a_published_dataset_is_collected(self, tmp_path: Path) -> None:
        published = publish(tmp_path / "published")
        with serve_hub(published) as hub:
            process = run_main(
                "collect", "dataset=minari", f"dataset.id={ID}", folder=tmp_path, fresh=True, HF_ENDPOINT=hub.url
            )
        assert process.returncode == 0, process.stderr
        assert contents(tmp_path / "store" / ID) == contents(published / ID)
        assert "  behaviour: nobody\n" in process.stdout
        (folder,) = (tmp_path / "outputs" / "collect" / "hopper").iterdir()
        assert {"summary.json", "data_card.png"} <= {path.name for path in folder.iterdir()}

    def test_without_a_network_training_ends_with_one_line_and_leaves_nothing(
        self, tmp_path: Path, closed_port: int
    ) -> None:
        endpoint = f"http://127.0.0.1:{closed_port}"
        process = run_main(
            "train", "dataset=minari", f"dataset.id={ID}", folder=tmp_path, fresh=True, HF_ENDPOINT=endpoint
        )
        assert process.returncode == 1
        (line,) = process.stderr.splitlines()
        assert line.startswith(f"error: dataset.id='{ID}' must be in the local Minari store")
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
