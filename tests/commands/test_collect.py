"""`python src/collect.py`: what it says and leaves; neither bad input nor a sudden end leaves half a dataset."""

from __future__ import annotations

import json
import math
import signal
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest

from helpers.command_line import Refusal, run_main
from helpers.example_data import (
    HOPPER,
    contents,
    flat_columns,
    made_up_episodes,
    same_episodes,
    save,
    write_d4rl,
    write_npz,
    write_parquet,
)
from helpers.holding import Hold, running
from trajectory.data.builtin import ensure_builtin, qualities
from trajectory.data.store import dataset_lock, in_store, load_episodes

SOURCES = ("builtin", "minari", "d4rl", "own")
RANDOM = ("dataset.quality=random", "dataset.steps=6000")
RANDOM_ID = "trajectory/hopper/random-steps6000-v0"


def test_help_shows_an_example_of_every_source_and_the_config(tmp_path: Path) -> None:
    process = run_main("collect", "--help", folder=tmp_path)
    assert process.returncode == 0
    for source in SOURCES[1:]:
        assert f"python src/collect.py env=hopper dataset={source} dataset." in process.stdout
    assert "python src/collect.py env=hopper dataset.quality=medium" in process.stdout
    assert "env=gym env.id=" in process.stdout
    assert all(quality in process.stdout for quality in qualities("hopper"))
    assert "\n  quality: medium\n" in process.stdout
    assert max(len(line) for line in process.stdout.splitlines()) <= 120


class TestOutcome:
    @pytest.fixture(scope="class")
    def place(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("place")

    @pytest.fixture(scope="class")
    def imported(self, place: Path) -> subprocess.CompletedProcess[str]:
        """Twelve episodes of one's own, in files."""
        path = write_npz(place / "hops", made_up_episodes(12, HOPPER))
        overrides = ("dataset=own", f"dataset.path={path}", "dataset.id=me/hops-v0", "dataset.behaviour=my hand")
        return run_main("collect", *overrides, folder=place)

    def test_the_summary_is_printed_and_written(self, place: Path, imported: subprocess.CompletedProcess[str]) -> None:
        assert imported.returncode == 0, imported.stderr
        (folder,) = (place / "outputs" / "collect" / "hopper").iterdir()
        assert {path.name for path in folder.iterdir()} == {"summary.json", "data_card.png", "collect.log", ".hydra"}
        assert (folder / "data_card.png").read_bytes().startswith(b"\x89PNG")
        summary = json.loads((folder / "summary.json").read_text())
        assert (summary["id"], summary["source"], summary["behaviour"]) == ("me/hops-v0", "own", "my hand")
        assert (summary["episodes"], summary["steps"], summary["termination_rate"]) == (12, 78, 0.5)
        for key, value in summary.items():
            assert f"  {key}: {value}\n" in imported.stdout
        assert str(folder.relative_to(place)) in imported.stdout

    def test_nothing_but_progress_is_on_stderr(self, imported: subprocess.CompletedProcess[str]) -> None:
        """No warnings of the libraries below."""
        assert [line for line in imported.stderr.splitlines() if "%|" not in line] == []

    def test_the_files_are_left_as_they_were(
        self, place: Path, imported: subprocess.CompletedProcess[str], tmp_path: Path
    ) -> None:
        assert {path.name for path in (place / "hops").iterdir()} == {f"episode_{number}.npz" for number in range(12)}
        again = write_npz(tmp_path / "hops", made_up_episodes(12, HOPPER))
        with np.load(again / "episode_7.npz") as one, np.load(place / "hops" / "episode_7.npz") as other:
            assert all(np.array_equal(one[name], other[name]) for name in one.files)

    def test_the_dataset_is_in_the_store(
        self, place: Path, imported: subprocess.CompletedProcess[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(place / "store"))
        assert load_episodes("me/hops-v0").lengths.tolist() == list(range(1, 13))


class TestSuddenEnd:
    def test_an_interrupted_recording_leaves_nothing_that_loads_and_the_next_start_records_the_whole(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ended while it writes the third episode: by Control-C, which tidies up, and by a kill, which leaves a folder
        and a lock.
        """
        store = tmp_path / "store"
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(store))
        for number, left in ((signal.SIGINT, 0), (signal.SIGKILL, 2)):
            with (
                Hold(tmp_path / number.name, "call", "_add_episode_to_group", 3) as hold,
                running("collect", *RANDOM, folder=tmp_path, **hold.variables) as process,
            ):
                assert hold.reached(process) == process.pid
                assert any(path.stat().st_size for path in store.rglob("main_data.hdf5"))
                process.send_signal(number)
                process.communicate()
            assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
            assert not in_store(RANDOM_ID)
            assert list(minari.list_local_datasets()) == []
            assert len(list(store.iterdir())) == left
        process = run_main("collect", *RANDOM, folder=tmp_path)
        assert process.returncode == 0, process.stderr
        assert list(minari.list_local_datasets()) == [RANDOM_ID]
        episodes = load_episodes(RANDOM_ID)
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "another"))
        assert same_episodes(episodes, load_episodes(ensure_builtin(HOPPER, "random", steps=6_000, seed=0)))

    def test_two_at_once_both_succeed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both are kept waiting for the dataset until both need it."""
        store = tmp_path / "store"
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(store))
        folders = [tmp_path / name for name in ("one", "other")]
        for folder in folders:
            folder.mkdir()
        with ExitStack() as stack:
            with dataset_lock(RANDOM_ID):
                processes = [
                    stack.enter_context(
                        running("collect", *RANDOM, folder=folder, MINARI_DATASETS_PATH=str(store)),
                    )
                    for folder in folders
                ]
                for process in processes:
                    assert process.stdout is not None
                    assert any(
                        f"waiting for another process that writes {RANDOM_ID}" in line for line in process.stdout
                    )
                    assert process.poll() is None
            for process in processes:
                _, stderr = process.communicate()
                assert process.returncode == 0, stderr
        first, second = (json.loads(next(folder.rglob("summary.json")).read_text()) for folder in folders)
        assert first == second
        assert list(minari.list_local_datasets()) == [RANDOM_ID]
        assert load_episodes(RANDOM_ID).content_hash() == first["content_hash"]
        assert [path.name for path in store.iterdir()] == ["trajectory"], "nothing hidden stays behind"


def spoil(path: Path, *, keep: float = 0.5) -> Path:
    """Cut a file off."""
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    return path


def hops(count: int = 3) -> list[Any]:
    return made_up_episodes(count, HOPPER)


def with_nan(count: int = 3) -> list[Any]:
    episodes = hops(count)
    episodes[1].observations[1, 5] = math.nan
    return episodes


def early_termination(path: Path) -> Path:
    """The last but one transition ends the task, and still the episode goes on."""
    with np.load(path / "episode_2.npz") as file:
        columns: dict[str, Any] = dict(file)
    columns["terminated"] = np.array([0, 1, 0])
    np.savez(path / "episode_2.npz", **columns)
    return path


def d4rl(folder: Path, **changes: Any) -> Path:
    columns = {name: column for name, column in (flat_columns(hops()) | changes).items() if column is not None}
    return write_d4rl(folder / "walks.hdf5", columns)


def text(folder: Path) -> Path:
    path = folder / "walks.hdf5"
    path.write_text("observations,actions\n0,0\n")
    return path


BAD_FILES: dict[str, tuple[str, Callable[[Path], Path], list[str]]] = {
    "d4rl: missing": ("d4rl", lambda folder: folder / "nosuch.hdf5", ["dataset.path must be", "nosuch.hdf5"]),
    "d4rl: a folder": ("d4rl", lambda folder: folder, ["dataset.path must be the path of a D4RL HDF5 file"]),
    "d4rl: cut in half": ("d4rl", lambda folder: spoil(d4rl(folder)), ["walks.hdf5", "must be a complete HDF5 file"]),
    "d4rl: text": ("d4rl", text, ["walks.hdf5", "must be a complete HDF5 file"]),
    "d4rl: nan": (
        "d4rl",
        lambda folder: d4rl(folder, **flat_columns(with_nan())),
        ["walks.hdf5", "finite numbers only, got nan in observation[5], episode 1, step 1"],
    ),
    "d4rl: no actions": (
        "d4rl",
        lambda folder: d4rl(folder, actions=None),
        ["D4RL's layout, got none named 'actions'"],
    ),
    "d4rl: lengths": (
        "d4rl",
        lambda folder: d4rl(folder, rewards=np.zeros(5)),
        ["columns of one length", "'rewards': 5"],
    ),
    "d4rl: empty": (
        "d4rl",
        lambda folder: d4rl(folder, **{name: column[:0] for name, column in flat_columns(hops()).items()}),
        ["must be a file of at least one transition, got 0"],
    ),
    "d4rl: text in it": ("d4rl", lambda folder: d4rl(folder, rewards=np.full(6, b"1")), ["must hold numbers, got |S1"]),
    "d4rl: dimensions": (
        "d4rl",
        lambda folder: d4rl(folder, actions=np.zeros((6, 2))),
        ["dataset.id='walks' must have the dimensions of Hopper-v5, 11 observations and 3 actions, got 11 and 2"],
    ),
    "own: missing": (
        "own",
        lambda folder: folder / "nosuch",
        ["dataset.path must be a file or a folder", "nosuch"],
    ),
    "own: a file": ("own", text, ["walks.hdf5 must be a complete .hdf5 file of numbers"]),
    "own: empty": ("own", lambda folder: folder, ["at least one .npz, .parquet, .csv or .hdf5 file"]),
    "own: nan": ("own", lambda folder: write_npz(folder, with_nan()), ["episode_1.npz", "finite, got 'nan at [1, 5]'"]),
    "own: early": (
        "own",
        lambda folder: early_termination(write_npz(folder, hops())),
        ["episode_2.npz", "set on the last transition alone"],
    ),
    "own: dimensions": (
        "own",
        lambda folder: write_npz(folder, made_up_episodes(2)),
        ["episode_0.npz", "actions must be an array of shape (L, 3), got (1, 1)"],
    ),
    "own: npz cut in half": (
        "own",
        lambda folder: spoil(write_npz(folder, hops()) / "episode_1.npz").parent,
        ["episode_1.npz must be a complete .npz file of numbers"],
    ),
    "own: parquet cut in half": (
        "own",
        lambda folder: spoil(write_parquet(folder, hops()) / "episode_1.parquet").parent,
        ["episode_1.parquet must be a complete .parquet file of numbers"],
    ),
}


@pytest.mark.parametrize(("source", "make", "words"), [*BAD_FILES.values()], ids=[*BAD_FILES])
def test_bad_files_end_with_one_line_and_stay_as_they_are(
    refusal: Refusal, tmp_path: Path, source: str, make: Callable[[Path], Path], words: list[str]
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    overrides = [f"dataset={source}", f"dataset.path={make(folder)}"]
    line = refusal("collect", *overrides, *(["dataset.id=me/walks-v0"] if source == "own" else []))
    assert line.startswith("error: ")
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["dataset=own"], ["dataset.id, dataset.path must be given"]),
        (["dataset=own", "dataset.path=."], ["dataset.id must be given"]),
        (["dataset=d4rl"], ["dataset.path must be given"]),
        (["dataset=minari"], ["dataset.id must be given"]),
        (["dataset=minari", "dataset.id=walks"], ["dataset.id must be NAMESPACE/NAME-vN", "got 'walks'"]),
        (
            ["dataset=own", "dataset.path=.", "dataset.id=../walks-v0"],
            ["dataset.id must be NAMESPACE", "'../walks-v0'"],
        ),
        (["dataset.source=rlds"], ["dataset.source must be one of builtin, minari, d4rl, own, mixture, got 'rlds'"]),
        (["dataset.quality=poor"], ["dataset.quality must be one of random, ", "for env=hopper, got 'poor'"]),
        (["env=gym", "env.id=Swimmer-v5"], ["dataset.quality must be one of random for env=Swimmer-v5, got 'medium'"]),
        (
            ["env=gym", "env.id=minigrid:MiniGrid-FourRooms-v0", "dataset.quality=random"],
            ["the observation 'mission' space must be", "leave it out with env.observation_keys=[direction,image]"],
        ),
        (["env.observation_keys=[position]", *RANDOM], ["env.observation_keys must be null", "['position']"]),
    ],
)
def test_bad_settings_end_with_one_line(refusal: Refusal, overrides: list[str], words: list[str]) -> None:
    line = refusal("collect", *overrides)
    assert all(word in line for word in words), line


def test_an_id_that_is_taken_is_refused(refusal: Refusal, tmp_path: Path) -> None:
    save("me/walks-v0", hops(), HOPPER)
    path = write_npz(tmp_path / "files", hops())
    line = refusal("collect", "dataset=own", f"dataset.path={path}", "dataset.id=me/walks-v0")
    assert f"dataset.id must be another one, as other data than {path} is stored under it, got 'me/walks-v0'" in line


@pytest.mark.parametrize("damage", ["main_data.hdf5", "metadata.json"])
def test_a_truncated_dataset_of_the_store_is_named(refusal: Refusal, store: Path, damage: str) -> None:
    save("me/walks-v0", hops(), HOPPER)
    spoil(store / "me" / "walks-v0" / "data" / damage)
    line = refusal("collect", "dataset=minari", "dataset.id=me/walks-v0")
    assert "dataset.id='me/walks-v0' must be a complete Minari dataset: " in line


def test_a_store_that_cannot_be_written_is_named(
    refusal: Refusal, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's own folder: not even the administrator can make a file there."""
    if not Path("/proc/self").is_dir():
        pytest.skip("a system without /proc")
    monkeypatch.setenv("MINARI_DATASETS_PATH", "/proc/self/store")
    line = refusal("collect", "dataset.quality=random", "dataset.steps=10")
    assert (
        "MINARI_DATASETS_PATH must be a folder that can be written, with room on its disk, got /proc/self/store" in line
    )


class TestProcess:
    """The same from outside: exit code, output and what is left, of the command as a user types it."""

    @pytest.mark.parametrize("case", ["d4rl: cut in half", "own: nan"])
    def test_bad_files(self, tmp_path: Path, case: str) -> None:
        source, make, words = BAD_FILES[case]
        files = tmp_path / "files"
        files.mkdir()
        path = make(files)
        before = contents(files)
        overrides = [
            f"dataset={source}",
            f"dataset.path={path}",
            *(["dataset.id=me/walks-v0"] if source == "own" else []),
        ]
        process = run_main("collect", *overrides, folder=tmp_path)
        assert process.returncode == 1
        (line,) = process.stderr.splitlines()
        assert line.startswith("error: ")
        assert all(word in line for word in words), line
        assert contents(files) == before
        assert [path for path in tmp_path.rglob("*") if path.is_file() and files not in path.parents] == []

    def test_a_full_disk(self, tmp_path: Path) -> None:
        process = run_main("collect", *RANDOM, folder=tmp_path, most_bytes=500_000)
        assert process.returncode == 1
        assert "Traceback" not in process.stderr
        line = process.stderr.splitlines()[-1]
        assert line.startswith(
            "error: MINARI_DATASETS_PATH must be a folder that can be written, with room on its disk"
        )
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
        assert list((tmp_path / "store").iterdir()) == []
