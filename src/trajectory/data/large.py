"""Data that do not fit into memory: read twice, some episodes at a time, into tokens that stay on the disk.

The first reading finds the summary and the bins. Bins are fitted to a random sample of the rows (`RowSample`) rather
than to a sketch of each column: one sample serves all columns, any tokeniser and the data card, frequent values are
found in it as in all data, and its error in ranks has a bound (`rank_error`). Columns of few values stay exact.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from trajectory.data.check import PARTS, check_data
from trajectory.data.discretizer import Discretizer, fit_bins
from trajectory.data.episodes import Episodes, held_out_episodes, rows_of
from trajectory.data.overview import MAX_ROWS, Overview
from trajectory.data.returns import token_columns
from trajectory.data.row_sample import KnownValues, RowSample
from trajectory.data.settings import TokenizerSettings
from trajectory.data.source import Source
from trajectory.data.windows import token_dtype, tokenize
from trajectory.errors import UserError, require
from trajectory.files import CACHE_VARIABLE, cache_path
from trajectory.progress import progress_bar

FILE_BLOCK = 1 << 20  # bytes read from a file at a time
NONE = np.empty(0, dtype=np.int64)


def tokenize_large(
    source: Source, settings: TokenizerSettings, validation_share: float, seed: int
) -> tuple[Overview, Discretizer, Tensor]:
    """The overview, the bins and the tokens of a dataset. The tokens are mapped from a file that has no name.

    Raises:
        UserError: what the source refuses, a share that leaves no episode, a tokeniser of the user's own that fails, or
            a cache without room.
    """
    held_out = NONE
    if validation_share:  # which episodes these are depends on how many there are
        held_out = held_out_episodes(sum(map(len, source.chunks())), validation_share, seed)
    found = survey(source, settings, held_out)
    overview = found.overview
    settings.check_choices(overview.layout, source.id)
    discretizer = fit_bins(found.columns(), settings, overview.layout)
    del found  # the sample takes memory
    return overview, discretizer, _write_tokens(source, settings, discretizer, int(overview.lengths.sum()))


@dataclass(frozen=True)
class Survey:
    """What one reading of a dataset finds.

    Args:
        sample: of the numbers that become tokens, and of the reward as it was recorded.
        known: of each dimension, what its bins must know besides.
    """

    overview: Overview
    sample: RowSample
    known: list[KnownValues]

    def columns(self) -> Iterator[np.ndarray]:
        """(n,) numbers of each dimension of a transition, to which its bins are fitted."""
        for known, column in zip(self.known, self.sample.columns(), strict=False):
            yield np.append(column, known.values)


def survey(source: Source, settings: TokenizerSettings, held_out: np.ndarray = NONE) -> Survey:
    """Read a dataset once.

    Args:
        held_out: (n,) ascending indices of the episodes that bins are not fitted to.

    Raises:
        UserError: what the source refuses, or a cache without room.
    """
    sample, known, layout = RowSample(settings.exact_rows), [], None
    returns, lengths, terminated = [], [], []
    looked_at: list[Episodes] = []  # a few evenly spaced parts
    episode = 0
    with _content_hash() as content:
        for chunk in _read(source, "reading"):
            layout = chunk.layout
            columns = token_columns(chunk, settings.terminal_reward, settings.discount)
            inside = held_out[np.searchsorted(held_out, episode) : np.searchsorted(held_out, episode + len(chunk))]
            rows = np.flatnonzero(~rows_of(chunk.ends, inside - episode)[0])
            sample.add([*columns, chunk.rewards], rows)
            known = known or [KnownValues(settings.bins) for _ in columns]
            for values, column in zip(known, columns, strict=True):
                values.add(column[rows] if len(inside) else column)
            content.add(chunk)
            looked_at = _evenly_spaced(looked_at, chunk, len(returns))
            for whole, part in ((returns, chunk.returns()), (lengths, chunk.lengths), (terminated, chunk.terminated)):
                whole.append(part)
            episode += len(chunk)
        assert layout is not None, "a source has episodes"
        of_episodes = [np.concatenate(parts) for parts in (returns, lengths, terminated)]
        content_hash = content.of(ends=np.cumsum(of_episodes[1]), terminated=of_episodes[2])
    stride = -(-sample.kept // MAX_ROWS)
    recorded = [column[::stride].copy() for column in sample.columns()]  # a view would keep the column
    del recorded[layout.reward_index : -1]  # as they become tokens
    check = check_data(looked_at, of_episodes[0])
    return Survey(Overview(layout, *of_episodes, content_hash, recorded, check), sample, known)


def _evenly_spaced(kept: list[Episodes], part: Episodes, number: int) -> list[Episodes]:
    """At most `PARTS` of the parts so far, and no less than half as many: every second, fourth, ... one."""
    every = 1 << (number // PARTS).bit_length()
    if number >= PARTS and number.bit_count() == 1:  # a power of two, where `every` doubles
        kept = kept[::2]
    return [*kept, part] if number % every == 0 else kept


class ContentHash:
    """`Episodes.content_hash` of episodes that come in parts.

    It takes one column after the other, so actions and rewards wait in files.
    """

    def __init__(self, *waiting: BinaryIO) -> None:
        self.digest = hashlib.sha256()
        self.waiting = waiting

    def add(self, episodes: Episodes) -> None:
        """The next part."""
        self.digest.update(np.ascontiguousarray(episodes.observations).data)
        for file, column in zip(self.waiting, (episodes.actions, episodes.rewards), strict=True):
            file.write(np.ascontiguousarray(column).data)

    def of(self, ends: np.ndarray, terminated: np.ndarray) -> str:
        """Of all parts, with the columns of the whole that are short."""
        for file in self.waiting:
            file.seek(0)
            for block in iter(partial(file.read, FILE_BLOCK), b""):
                self.digest.update(block)
        for column in (ends, terminated):
            self.digest.update(np.ascontiguousarray(column).data)
        return self.digest.hexdigest()[:16]


@contextmanager
def _content_hash() -> Generator[ContentHash]:
    with _file_without_name() as actions, _file_without_name() as rewards:
        yield ContentHash(actions, rewards)


def _write_tokens(source: Source, settings: TokenizerSettings, discretizer: Discretizer, rows: int) -> Tensor:
    """(T, D) tokens, mapped from a file without a name: the system removes it however this process ends."""
    dtype = torch.empty(0, dtype=token_dtype(settings.bins)).numpy().dtype
    written = 0
    with _file_without_name() as file:
        for chunk in _read(source, "tokenising", rows):
            columns = token_columns(chunk, settings.terminal_reward, settings.discount)
            file.write(tokenize(columns, discretizer).numpy().data)
            written += len(chunk.rewards)
        require(written == rows, "dataset", f"the same at every reading, {rows} transitions", written)
        file.flush()
        # copy-on-write, because torch has no read-only tensors
        return torch.from_numpy(np.memmap(file, dtype, mode="c", shape=(rows, len(discretizer.counts))))


def _read(source: Source, activity: str, rows: int | None = None) -> Iterator[Episodes]:
    """The episodes of a source, with a progress bar."""
    name = f"{activity} {source.id}"
    with progress_bar(total=rows, desc=name, unit="transition", unit_scale=True, leave=False) as bar:
        for chunk in source.chunks():
            yield chunk
            bar.update(len(chunk.rewards))


@contextmanager
def _file_without_name() -> Generator[BinaryIO]:
    """A file in the cache's folder. Turns an `OSError` in the block, such as a full disk, into a `UserError`."""
    folder = cache_path()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            yield file
    except OSError as error:
        raise UserError(
            f"{CACHE_VARIABLE} must be a folder that can be written, with room for the tokens of data of more than "
            f"tokenizer.exact_rows transitions, got {folder}: {error}"
        ) from error
