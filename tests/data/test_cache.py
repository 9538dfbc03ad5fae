"""`data/cache.py`: a second start finds the tokens of the first, and never those of anything else."""

from __future__ import annotations

import logging
import os
import resource
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.synthetic_data import Reader, random_episodes, source_of, write_episodes
from trajectory.data import cache
from trajectory.data.cache import TokenizedData, cache_key, load_tokens, save_tokens
from trajectory.data.datamodule import TrajectoryDataModule
from trajectory.data.discretizer import Discretizer
from trajectory.data.episodes import Episodes
from trajectory.data.settings import TokenizerSettings
from trajectory.data.source import Source
from trajectory.errors import UserError
from trajectory.files import CACHE_VARIABLE, cache_path

# started by a process that has imported what they need
PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload(["trajectory.data.datamodule"])

FILES = ("tokens.npy", "episodes.npz", "summary.json", "card.png", "sha256.json")


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, still without a folder."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    episodes = random_episodes([400, 1, 700, 900], [True, False, True, False])
    return write_episodes(tmp_path / "episodes.npz", episodes)


def start(source: Source, tokenizer: TokenizerSettings | None = None) -> TrajectoryDataModule:
    data = TrajectoryDataModule(source, tokenizer or TokenizerSettings(), window=5, batch_size=32, seed=0)
    data.setup()
    return data


def contents(data: TrajectoryDataModule) -> dict[str, Any]:
    """All that training, checkpoints and results take from a dataset, in a form that compares."""
    assert data.windows is not None
    return {
        "tokens": (data.windows.tokens.dtype, data.windows.tokens.tolist()),
        "ends": data.windows.ends.tolist(),
        "terminated": data.windows.terminated.tolist(),
        "bins": {name: (value.dtype, value.tolist()) for name, value in data.discretizer.state_dict().items()},
        "summary": data.summary,
        "layout": data.layout,
        "card": data.card,
    }


def entries(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class TestHit:
    def test_a_second_start_reads_nothing_and_has_the_same(self, path: Path) -> None:
        reader = Reader()
        first, second = (start(source_of(path, reader)) for _ in range(2))
        assert reader.times == 1
        assert contents(first) == contents(second)

    def test_its_tokens_are_mapped_and_writing_to_them_leaves_the_file(self, path: Path) -> None:
        reader = Reader()
        expected = contents(start(source_of(path, reader)))
        windows = start(source_of(path, reader)).windows
        assert windows is not None
        windows.tokens.zero_()
        assert contents(start(source_of(path, reader))) == expected
        assert reader.times == 1

    @pytest.mark.parametrize("bins", [2, 100, 256, 300])
    def test_tokens_of_every_type(self, path: Path, bins: int) -> None:
        reader = Reader()
        tokenizer = TokenizerSettings(bins=bins)
        assert contents(start(source_of(path, reader), tokenizer)) == contents(
            start(source_of(path, reader), tokenizer)
        )
        assert reader.times == 1

    def test_the_folder_of_entries(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert cache_path() == root
        monkeypatch.delenv(CACHE_VARIABLE)
        monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
        assert cache_path() == Path("/caches/trajectory-transformer")
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", "/home/someone")
        assert cache_path() == Path("/home/someone/.cache/trajectory-transformer")


class TestMiss:
    def test_other_bytes(self, path: Path) -> None:
        reader = Reader()
        before = contents(start(source_of(path, reader)))
        write_episodes(path, random_episodes([400, 1, 700, 900], [True, False, True, False], seed=1))
        after = contents(start(source_of(path, reader)))
        assert reader.times == 2
        assert before["tokens"] != after["tokens"]

    @pytest.mark.parametrize(
        "settings",
        [{"binning": "uniform"}, {"bins": 99}, {"discount": 0.98}, {"terminal_reward": None}],
        ids=lambda settings: next(iter(settings)),
    )
    def test_another_tokenizer(self, path: Path, settings: dict[str, Any]) -> None:
        reader = Reader()
        before = contents(start(source_of(path, reader)))
        after = contents(start(source_of(path, reader), replace(TokenizerSettings(), **settings)))
        assert reader.times == 2
        assert before["tokens"] != after["tokens"]

    @pytest.mark.parametrize("changes", [{"id": "test/other-v0"}, {"behaviour": "somebody"}])
    def test_another_name_or_behaviour(self, path: Path, changes: dict[str, str]) -> None:
        """They stand in the summary and on the card."""
        reader = Reader()
        start(source_of(path, reader))
        summary = start(source_of(path, reader, **changes)).summary
        assert reader.times == 2
        assert changes.items() <= summary.items()

    def test_another_window_batch_or_seed_is_a_hit(self, path: Path) -> None:
        reader = Reader()
        start(source_of(path, reader))
        TrajectoryDataModule(source_of(path, reader), TokenizerSettings(), window=9, batch_size=7, seed=3).setup()
        assert reader.times == 1

    def test_other_code(self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        room = Path(shutil.copytree(Path(cache.__file__).parent, tmp_path / "data"))
        before = cache_key([path], {})
        monkeypatch.setattr(cache, "__file__", str(room / "cache.py"))
        assert cache_key([path], {}) == before, "the same code elsewhere"
        (room / "returns.py").write_text((room / "returns.py").read_text() + "# changed\n")
        changed = cache_key([path], {})
        (room / "layouts" / "ends.py").unlink()
        assert len({before, changed, cache_key([path], {})}) == 3

    def test_keys_tell_which_file_has_which_bytes(self, tmp_path: Path) -> None:
        one, other = tmp_path / "one", tmp_path / "other"
        one.write_bytes(b"a")
        other.write_bytes(b"b")
        keys = {cache_key(files, {}) for files in ([one], [other], [one, other], [other, one], [one, one], [])}
        assert len(keys) == 6

    def test_a_file_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"dataset: .*missing\.hdf5 must be a file that can be read"):
            cache_key([tmp_path / "missing.hdf5"], {})


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    """One bit, in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(file: Path) -> None:
    file.write_bytes(b"")


@dataclass(frozen=True)
class Made:
    """A dataset's file, its whole entry, and what a start on it gives."""

    path: Path
    entry: Path
    contents: dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    path = write_episodes(folder / "episodes.npz", random_episodes([400, 1, 900], [True, False, False]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder / "cache"))
        data = start(source_of(path, Reader()))
    (entry,) = (folder / "cache").iterdir()
    return Made(path, entry, contents(data))


class TestDamage:
    @pytest.mark.parametrize(
        ("name", "damage"),
        [
            *((name, flip) for name in FILES),
            *((name, damage) for name in ("tokens.npy", "sha256.json") for damage in (cut, empty, Path.unlink)),
        ],
    )
    def test_a_damaged_entry_is_made_anew(
        self, made: Made, root: Path, name: str, damage: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder = shutil.copytree(made.entry, root / made.entry.name)
        assert {file.name for file in folder.iterdir()} == set(FILES)
        damage(folder / name)
        reader = Reader()
        assert contents(start(source_of(made.path, reader))) == made.contents
        assert reader.times == 1
        (warning,) = warnings_in(caplog)
        assert f"{folder} is damaged and made anew" in warning
        assert contents(start(source_of(made.path, reader))) == made.contents
        assert reader.times == 1, "the entry is whole again"
        assert entries(root) == {folder.name}

    def test_what_a_killed_writer_left_is_not_seen(self, made: Made, root: Path) -> None:
        left = shutil.copytree(made.entry, root / ".writing-killed")
        (left / "sha256.json").unlink()
        reader = Reader()
        for _ in range(2):
            assert contents(start(source_of(made.path, reader))) == made.contents
        assert reader.times == 1
        assert entries(root) == {made.entry.name, left.name}

    @pytest.mark.parametrize("below", ["", "below"])
    def test_without_a_folder_training_goes_on_after_one_warning(
        self, made: Made, below: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv(CACHE_VARIABLE, str(made.path / below))  # a file, not a folder
        assert contents(start(source_of(made.path, Reader()))) == made.contents
        (warning,) = warnings_in(caplog)
        assert "the tokens of test/random-v0 are not kept for a next start" in warning

    def test_a_full_disk_leaves_nothing_half_written(self, made: Made, root: Path) -> None:
        with ProcessPoolExecutor(1, mp_context=PROCESSES) as process:
            found, warnings = process.submit(start_on_a_full_disk, made.path, root, 5_000).result()
        assert entries(root) == set()
        (warning,) = warnings
        assert "the tokens of test/random-v0 are not kept for a next start" in warning
        assert found == made.contents


def start_on_a_full_disk(path: Path, root: Path, most_bytes: int) -> tuple[dict[str, Any], list[str]]:
    """In a process of its own, no file of which may grow beyond `most_bytes`: what it has, and its warnings."""
    os.environ[CACHE_VARIABLE] = str(root)
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("trajectory").addHandler(handler)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    return contents(start(source_of(path, Reader()))), messages


class MeetingReader(Reader):
    """Reads when the other process is stopped by the lock, which this one has then."""

    def __init__(self, meeting: Barrier) -> None:
        super().__init__()
        self.meeting = meeting

    def __call__(self, path: Path) -> Episodes:
        self.meeting.wait()
        return super().__call__(path)


class MeetingHandler(logging.Handler):
    """Comes to the meeting when this process says that it waits for the lock."""

    def __init__(self, meeting: Barrier) -> None:
        super().__init__()
        self.meeting = meeting
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        self.meeting.wait()


LAST_RESORT_S = 600.0
meetings: list[Barrier] = []  # in the processes of a pool: the one that they are told of at their start


def tell(meeting: Barrier) -> None:
    meetings.append(meeting)


def start_together(path: Path, root: Path) -> tuple[dict[str, Any], int, list[str]]:
    """In a process of its own: what it has, how often it read, and what it said when it had to wait."""
    os.environ[CACHE_VARIABLE] = str(root)
    (meeting,) = meetings
    reader, handler, logger = MeetingReader(meeting), MeetingHandler(meeting), logging.getLogger("trajectory.locks")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    data = start(source_of(path, reader))
    return contents(data), reader.times, handler.messages


def test_of_two_processes_at_once_one_tokenises_and_both_go_on(path: Path, root: Path) -> None:
    """The one that has the lock is held until the other says that it waits."""
    meeting = PROCESSES.Barrier(2, timeout=LAST_RESORT_S)
    with ProcessPoolExecutor(2, PROCESSES, tell, (meeting,)) as processes:
        runs = [processes.submit(start_together, path, root) for _ in range(2)]
        (first, read, said), (second, read_too, said_too) = (run.result() for run in runs)
    assert first == second
    assert read + read_too == 1
    assert said + said_too == ["waiting for another process that tokenises test/random-v0"]
    assert bool(said) == (read == 0), "the one that waited read nothing"
    assert len(entries(root)) == 1
    reader = Reader()
    assert contents(start(source_of(path, reader))) == first
    assert reader.times == 0


def test_the_first_of_two_entries_stays(root: Path) -> None:
    """What is there may be mapped by a run."""
    fit = Discretizer.fit([np.arange(4.0)] * 3, 2, "quantile", random_episodes([1], [True]).layout)
    for token in (0, 1):
        tokens = torch.full((4, 3), token, dtype=torch.uint8)
        save_tokens("key", TokenizedData(tokens, np.array([4]), np.array([True]), fit, {"id": "x"}, b"card"))
    assert entries(root) == {"key"}
    kept = load_tokens("key")
    assert kept is not None
    assert kept.tokens.tolist() == [[0, 0, 0]] * 4
