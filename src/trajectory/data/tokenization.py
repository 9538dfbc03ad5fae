"""From a dataset to its tokens, from the cache or computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from trajectory.data.cache import TokenizedData, cache_key, load_tokens, save_tokens, tokens_lock
from trajectory.data.card import draw_card
from trajectory.data.discretizer import Discretizer, fit_bins
from trajectory.data.episodes import Episodes, ends_in_all, held_out_episodes, rows_of
from trajectory.data.large import tokenize_large
from trajectory.data.overview import Overview
from trajectory.data.returns import token_columns
from trajectory.data.settings import TokenizerSettings
from trajectory.data.source import Source, summarize
from trajectory.data.windows import token_dtype, tokenize
from trajectory.hardware import release_memory
from trajectory.progress import progress_bar


def load_or_tokenize(
    source: Source, settings: TokenizerSettings, *, validation_share: float = 0.0, seed: int = 0
) -> TokenizedData:
    """The tokens of an earlier start on the same data, or new ones, which are kept for the next.

    Args:
        validation_share: of the episodes, which bins are not fitted to; which ones depends on the seed.

    Raises:
        UserError: what the source refuses, or a share that leaves no episode.
    """
    if settings.external is not None:  # what others' code does may change without its name
        return tokenize_source(source, settings, validation_share, seed)
    split = {"validation": (validation_share, seed)} if validation_share else {}
    key = cache_key(source.files, {"source": source.cache_metadata(), "tokenizer": asdict(settings), **split})
    data = load_tokens(key)
    if data is None:
        with tokens_lock(key, source.id):
            data = load_tokens(key)
            if data is None:
                data = tokenize_source(source, settings, validation_share, seed)
                release_memory()
                save_tokens(key, data)
                data = load_tokens(key) or data  # mapped from the disk, so that nothing of it is in memory twice
    return data


def tokenize_source(
    source: Source, settings: TokenizerSettings, validation_share: float = 0.0, seed: int = 0
) -> TokenizedData:
    """Read a dataset, fit the bins and tokenise. Data of more than `exact_rows` rows stay on the disk.

    Raises:
        UserError: what the source refuses, a share that leaves no episode, or a tokeniser of the user's own that fails.
    """
    parts = source.load_parts(settings.exact_rows)
    if parts is None:
        overview, discretizer, tokens = tokenize_large(source, settings, validation_share, seed)
    else:
        settings.check_choices(parts[0].layout, source.id)
        overview = Overview.of(parts)
        held_out = held_out_episodes(len(overview.lengths), validation_share, seed)
        discretizer, tokens = _tokenize_parts(parts, settings, held_out, source.id)
    summary = {**summarize(overview, source), "check": overview.check, "layout": asdict(overview.layout)}
    ends, card = np.cumsum(overview.lengths), draw_card(overview, summary)
    return TokenizedData(tokens, ends, overview.terminated, discretizer, summary, card)


def _tokenize_parts(
    parts: Sequence[Episodes], settings: TokenizerSettings, held_out: np.ndarray, dataset_id: str
) -> tuple[Discretizer, Tensor]:
    """The bins and the tokens of a dataset in memory, one column at a time."""
    layout = parts[0].layout
    tables = [token_columns(part, settings.terminal_reward, settings.discount) for part in parts]
    fitted_to = ~rows_of(ends_in_all(parts), held_out)[0] if len(held_out) else slice(None)
    progress = progress_bar(
        zip(*tables, strict=True),
        desc=f"fitting bins of {dataset_id}",
        unit="column",
        leave=False,
        total=layout.transition_dim,
    )
    discretizer = fit_bins((np.concatenate(column)[fitted_to] for column in progress), settings, layout)
    stops = np.cumsum([len(part.rewards) for part in parts]).tolist()
    tokens = torch.empty(stops[-1], layout.transition_dim, dtype=token_dtype(settings.bins))
    for stop, table in zip(stops, tables, strict=True):
        tokens[stop - len(table[0]) : stop] = tokenize(table, discretizer)
    return discretizer, tokens
