"""Data that do not fit into memory, in miniature: fewer rows than `exact_rows` go to memory, more stay on the disk."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.command_line import TINY_CRITIC, run_main
from helpers.synthetic_data import PartsReader, Reader, random_episodes, source_of, write_episodes
from trajectory.data import datamodule as module
from trajectory.data.collect import overview_of
from trajectory.data.datamodule import TrajectoryDataModule
from trajectory.data.discretizer import Discretizer
from trajectory.data.episodes import Episodes, held_out_episodes, rows_of
from trajectory.data.overview import Overview
from trajectory.data.returns import token_columns
from trajectory.data.row_sample import rank_error
from trajectory.data.settings import TokenizerSettings
from trajectory.data.source import summarize
from trajectory.data.tokenization import load_or_tokenize, tokenize_source
from trajectory.data.windows import ShuffledBatches
from trajectory.errors import UserError
from trajectory.files import CACHE_VARIABLE

ROWS, MOST = 12_000, 4_000
EXACT = TokenizerSettings(bins=20)
LARGE = replace(EXACT, exact_rows=MOST)
PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload(["trajectory.data.datamodule"])


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def episodes() -> Episodes:
    """One observation is constant, one has three values of which one is rare, a fifth of the actions is saturated."""
    made = random_episodes([30] * (ROWS // 30), [True, False] * (ROWS // 60))
    made.observations[:, 1] = 7.25
    made.observations[:, 2] = np.arange(ROWS) % 2
    made.observations[5_000, 2] = 0.5
    return made


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, episodes: Episodes) -> Path:
    return write_episodes(tmp_path_factory.mktemp("data") / "episodes.npz", episodes)


def columns_of(episodes: Episodes) -> list[np.ndarray]:
    return token_columns(episodes, EXACT.terminal_reward, EXACT.discount)


def encoded(episodes: Episodes, discretizer: Discretizer) -> torch.Tensor:
    """(T, D) tokens by `encode`, all rows at once."""
    return discretizer.encode(torch.from_numpy(np.stack(columns_of(episodes), axis=1)))


def start(path: Path, settings: TokenizerSettings = LARGE, **changes: Any) -> TrajectoryDataModule:
    options: dict[str, Any] = {"window": 5, "batch_size": 64, "seed": 0, **changes}
    data = TrajectoryDataModule(source_of(path, PartsReader()), settings, **options)
    data.setup()
    return data


class TestTokens:
    @pytest.mark.parametrize("parts", [1, 7, 1_000])
    def test_they_are_those_of_the_bins_in_the_order_of_the_rows(
        self, path: Path, episodes: Episodes, parts: int
    ) -> None:
        """Whatever the parts in which a source is read."""
        found = tokenize_source(source_of(path, PartsReader(parts)), LARGE)
        assert found.tokens.dtype is torch.uint8
        assert torch.equal(found.tokens.long(), encoded(episodes, found.discretizer))
        whole = tokenize_source(source_of(path, Reader()), LARGE)
        assert torch.equal(found.tokens, whole.tokens)

    def test_everything_but_the_bins_is_as_in_memory(self, path: Path) -> None:
        large, exact = (tokenize_source(source_of(path, PartsReader()), settings) for settings in (LARGE, EXACT))
        assert {"constant: observation 1"} <= set(large.summary.pop("check")) & set(exact.summary.pop("check"))
        assert large.summary == exact.summary, "the hash of the content too"
        assert large.ends.tolist() == exact.ends.tolist()
        assert large.terminated.tolist() == exact.terminated.tolist()
        assert large.tokens.shape == exact.tokens.shape
        assert not torch.equal(large.tokens, exact.tokens)

    def test_as_many_rows_as_fit_are_exact(self, path: Path) -> None:
        fits, exact = (
            tokenize_source(source_of(path, PartsReader()), settings)
            for settings in (replace(EXACT, exact_rows=ROWS), EXACT)
        )
        assert torch.equal(fits.tokens, exact.tokens)
        one_less = tokenize_source(source_of(path, PartsReader()), replace(EXACT, exact_rows=ROWS - 1))
        assert not torch.equal(one_less.tokens, exact.tokens)

    @pytest.mark.parametrize("binning", ["quantile", "uniform"])
    def test_ranks_of_bins_are_off_by_a_bounded_share(self, path: Path, episodes: Episodes, binning: str) -> None:
        """Each boundary lies where the share of rows below it is that of the exact one, but for the sample's error.

        That is `rank_error`, two known values, and in each of the two the rows by which a cut is moved around a
        repeated value. Uniform bins need the ends alone, which are known.
        """
        large, exact = (
            tokenize_source(source_of(path, PartsReader()), replace(settings, binning=binning)).discretizer
            for settings in (LARGE, EXACT)
        )
        bound = rank_error(MOST // 2, probability=1e-3) + 2 / (MOST // 2)
        for dimension, column in enumerate(columns_of(episodes)):
            assert large.counts[dimension] == exact.counts[dimension], dimension
            count = int(exact.counts[dimension]) - 1
            ordered = np.sort(column)
            shares = [
                np.searchsorted(ordered, one.boundaries[dimension, :count].numpy()) / ROWS for one in (large, exact)
            ]
            assert np.abs(shares[0] - shares[1]).max(initial=0.0) <= 2 * bound, dimension
            if binning == "uniform" and dimension < 3:  # the others have repeated values, between which bins are cut
                torch.testing.assert_close(large.values[dimension], exact.values[dimension])

    def test_frequent_and_few_values_decode_exactly(self, path: Path, episodes: Episodes) -> None:
        """The constant, three values of which one is in one row of all, saturated actions, the terminal reward."""
        found = tokenize_source(source_of(path, PartsReader()), LARGE)
        columns = np.stack(columns_of(episodes), axis=1)
        decoded = found.discretizer.decode(found.tokens.long()).numpy()
        assert found.discretizer.counts[:3].tolist() == [20, 1, 3]
        np.testing.assert_array_equal(decoded[:, 1:3], columns[:, 1:3])
        for dimension, values in ((3, (-1, 1)), (4, (-100,)), (5, (0,))):
            for value in values:
                rows = columns[:, dimension] == value
                assert rows.sum() > 100
                assert (decoded[rows, dimension] == value).all(), (dimension, value)

    def test_a_tokeniser_of_the_users_own_gets_the_sample(self, path: Path, root: Path) -> None:
        settings = replace(LARGE, binning={"_target_": f"{__name__}.Halves"})
        found = load_or_tokenize(source_of(path, PartsReader()), settings)
        assert found.discretizer.counts.tolist() == [2, 1, 2, 2, 2, 2]
        assert MOST // 3 < min(Halves.lengths) <= max(Halves.lengths) <= MOST + EXACT.bins
        assert found.tokens.shape == (ROWS, 6)
        assert list(root.iterdir()) == [], "its tokens are in a file without a name"

    def test_what_is_not_finite_is_refused(self, tmp_path: Path) -> None:
        huge = random_episodes([30] * 20, [True] * 20)
        huge.rewards[:] = 3e38
        source = source_of(write_episodes(tmp_path / "huge.npz", huge), PartsReader())
        with (
            pytest.raises(UserError, match="value must hold finite numbers only, as float32"),
            np.errstate(over="ignore"),
        ):
            tokenize_source(source, replace(LARGE, exact_rows=100))


class Halves:
    """A tokeniser that cuts at the mean."""

    lengths: tuple[int, ...] = ()

    def fit(self, columns: Any, bins: int, layout: Any) -> Iterator[Any]:
        for column in columns:
            Halves.lengths += (len(column),)
            upper = np.unique(column[column > column.mean()])
            lower = np.unique(column[column <= column.mean()])
            parts = [part for part in (lower, upper) if len(part)]
            yield [part[0] for part in parts], [part[-1] for part in parts], [part.mean() for part in parts]


class TestHeldOut:
    def test_bins_see_no_episode_that_is_held_out(self, tmp_path: Path, path: Path, episodes: Episodes) -> None:
        rows = rows_of(episodes.ends, held_out_episodes(len(episodes), 0.2, 0))[0]
        observations = episodes.observations + 100 * rows[:, None].astype(np.float32)
        changed = write_episodes(tmp_path / "changed.npz", replace(episodes, observations=observations))
        one, other = (start(where, validation_share=0.2) for where in (path, changed))
        for name, bins in one.discretizer.state_dict().items():
            assert torch.equal(bins, other.discretizer.state_dict()[name]), name
        assert one.summary["content_hash"] != other.summary["content_hash"]
        whole = start(path)
        assert not torch.equal(whole.discretizer.boundaries, one.discretizer.boundaries)

    def test_windows_of_both_make_up_all(self, path: Path, episodes: Episodes) -> None:
        data = start(path, validation_share=0.2)
        assert data.windows is not None
        assert data.validation is not None
        held_out = rows_of(episodes.ends, held_out_episodes(len(episodes), 0.2, 0))[0]
        tokens = encoded(episodes, data.discretizer)
        for windows, rows in ((data.windows, ~held_out), (data.validation, held_out)):
            first = windows.first_of(torch.arange(len(windows)))
            assert torch.equal(first.long(), tokens[torch.from_numpy(rows)])


class TestOverview:
    def test_it_is_that_of_all_rows_in_memory(self, path: Path, episodes: Episodes) -> None:
        source, whole = source_of(path, PartsReader()), Overview.of([episodes])
        for most in (ROWS, MOST):
            found = overview_of(source, TokenizerSettings(exact_rows=most))
            assert summarize(found, source) == summarize(whole, source)
            assert found.lengths.tolist() == whole.lengths.tolist()
            assert [len(column) for column in found.columns] == [len(found.columns[0])] * 5
        for column, of_all in zip(found.columns, whole.columns, strict=True):
            assert MOST // 3 < len(column) <= MOST
            assert np.isin(column, of_all).all()
            assert abs(column.mean() - of_all.mean()) < 0.1


class TestBatches:
    def test_their_order_is_that_of_data_in_memory(self, path: Path) -> None:
        """It depends on seed, epoch and the number of rows alone, and every row comes once."""
        one, other = start(path), start(path, EXACT)
        for epoch in (0, 1):
            orders = []
            for data in (one, other):
                loader = data.train_dataloader()
                assert isinstance(loader.sampler, ShuffledBatches)
                loader.sampler.set_epoch(epoch)
                orders.append(torch.cat(list(loader.sampler)).tolist())
            assert orders[0] == orders[1]
            assert len(set(orders[0])) == ROWS - ROWS % 64

    def test_two_ranks_read_disjoint_halves_of_one_file(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        alone = [tokens for tokens, _ in start(path).train_dataloader()]
        parts, rows = [], []
        for rank in (0, 1):
            monkeypatch.setattr(module, "world_size", lambda: 2)
            monkeypatch.setattr(module, "rank", lambda rank=rank: rank)
            loader = start(path).train_dataloader()
            parts.append([tokens for tokens, _ in loader])
            assert isinstance(loader.sampler, ShuffledBatches)
            rows.append(torch.cat(list(loader.sampler)).tolist())
        assert all(len(tokens) == 32 for tokens in parts[0] + parts[1])
        assert set(rows[0]).isdisjoint(rows[1])
        assert len({*rows[0], *rows[1]}) == ROWS - ROWS % 64
        assert all(torch.equal(torch.cat(two), whole) for *two, whole in zip(*parts, alone, strict=True))


class TestCache:
    def test_a_second_start_maps_what_the_first_wrote(self, path: Path, root: Path) -> None:
        readers = PartsReader(), PartsReader()
        first, second = (load_or_tokenize(source_of(path, reader), LARGE) for reader in readers)
        assert [reader.times for reader in readers] == [3, 0], "one to see that it is large, and two"
        assert torch.equal(first.tokens, second.tokens)
        assert first.summary == second.summary
        (entry,) = root.iterdir()
        assert np.load(entry / "tokens.npy", mmap_mode="r").shape == (ROWS, 6)
        second.tokens.zero_()
        assert torch.equal(first.tokens, load_or_tokenize(source_of(path, PartsReader()), LARGE).tokens)

    def test_a_full_disk_is_one_line_and_leaves_nothing(self, path: Path, root: Path) -> None:
        with ProcessPoolExecutor(1, mp_context=PROCESSES) as process:
            message = process.submit(refusal_on_a_full_disk, path, root, 50_000).result()
        assert message.startswith(f"{CACHE_VARIABLE} must be a folder that can be written, with room for the tokens")
        assert "\n" not in message
        assert list(root.iterdir()) == []

    def test_a_cache_that_is_no_folder_is_named(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(CACHE_VARIABLE, str(path))
        with pytest.raises(
            UserError, match=rf"^{CACHE_VARIABLE} must be a folder that can be written, .* got {path}: "
        ):
            start(path)

    @pytest.mark.parametrize("reading", [2, 3])
    def test_a_killed_process_leaves_nothing_that_a_next_start_sees(self, path: Path, root: Path, reading: int) -> None:
        """In the middle of finding the bins, and of writing the tokens."""
        process = PROCESSES.Process(target=start_and_die, args=(path, root, reading))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert all(left.name.endswith(".lock") for left in root.iterdir())
        data = start(path)
        assert data.windows is not None
        assert len(data.windows) == ROWS
        assert len(list(root.iterdir())) == 1

    def test_data_that_change_while_they_are_read_are_refused(self, path: Path, root: Path) -> None:
        with pytest.raises(
            UserError, match=r"^dataset must be the same at every reading, 12000 transitions, got 9000$"
        ):
            load_or_tokenize(source_of(path, ShrinkingReader()), LARGE)
        assert list(root.iterdir()) == []


class ShrinkingReader(PartsReader):
    """The third reading gives fewer episodes."""

    def __call__(self, path: Path) -> Iterator[Episodes]:
        parts = list(super().__call__(path))
        yield from parts[: 100 if self.times == 3 else None]


class DyingReader(PartsReader):
    """Ends its process in the middle of a reading."""

    def __init__(self, reading: int) -> None:
        super().__init__()
        self.reading = reading

    def __call__(self, path: Path) -> Iterator[Episodes]:
        for number, part in enumerate(super().__call__(path)):
            if self.times == self.reading and number == 60:
                os.kill(os.getpid(), signal.SIGKILL)
            yield part


def start_and_die(path: Path, root: Path, reading: int) -> None:
    os.environ[CACHE_VARIABLE] = str(root)
    load_or_tokenize(source_of(path, DyingReader(reading)), LARGE)


def refusal_on_a_full_disk(path: Path, root: Path, most_bytes: int) -> str:
    """In a process of its own, no file of which may grow beyond `most_bytes`."""
    os.environ[CACHE_VARIABLE] = str(root)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    try:
        start(path)
    except UserError as error:
        return str(error)
    return "nothing was refused"


class TestEpisodesInMemory:
    def test_of_large_data_a_sample_of_whole_episodes_that_depends_on_the_seed(
        self, path: Path, episodes: Episodes
    ) -> None:
        first, again, other = (start(path, seed=seed).training_episodes() for seed in (0, 0, 1))
        assert len(first) == MOST // 30
        assert first.lengths.tolist() == [30] * len(first)
        assert first.content_hash() == again.content_hash() != other.content_hash()
        places = [np.flatnonzero(episodes.rewards == reward)[0] for reward in first.rewards[::30]]
        assert (np.diff(places) > 0).all()
        assert all(place % 30 == 0 for place in places)

    def test_none_that_is_held_out_is_trained_on(self, path: Path) -> None:
        data = start(path, validation_share=0.5)
        trained, held_out = data.training_episodes(), data.validation_episodes()
        assert len(trained) == len(held_out) == MOST // 30
        assert set(trained.rewards.tolist()).isdisjoint(held_out.rewards.tolist())

    def test_of_data_that_fit_all(self, path: Path, episodes: Episodes) -> None:
        assert start(path, EXACT).training_episodes().content_hash() == episodes.content_hash()


def test_the_command_trains_model_and_critic_on_large_data(tmp_path: Path) -> None:
    options = ("tokenizer.exact_rows=400", "logger=csv", "evaluation.video=false", "hydra.run.dir=run")
    process = run_main("train", *TINY_CRITIC, *options, folder=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "episodes, a random sample, are taken into memory" in process.stdout + process.stderr
    assert (tmp_path / "run" / "results.json").is_file()
