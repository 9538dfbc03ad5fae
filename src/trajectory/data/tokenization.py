"""From a dataset to its tokens, from the cache or computed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

import numpy as np

from trajectory.data.cache import TokenizedData, cache_key, load_tokens, save_tokens, tokens_lock
from trajectory.data.card import draw_card
from trajectory.data.check import check_data
from trajectory.data.discretizer import Discretizer, finite_columns, make_tokenizer
from trajectory.data.episodes import held_out_episodes, rows_of
from trajectory.data.returns import return_to_go, shape_rewards
from trajectory.data.settings import TokenizerSettings
from trajectory.data.source import Source, summarize
from trajectory.data.windows import tokenize
from trajectory.errors import UserError, first_line
from trajectory.hardware import release_memory
from trajectory.progress import progress_bar
from trajectory.transition import TransitionLayout


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
    return data


def tokenize_source(
    source: Source, settings: TokenizerSettings, validation_share: float = 0.0, seed: int = 0
) -> TokenizedData:
    """Load a dataset, fit the bins and tokenise, one column at a time: beside the data, a few columns of memory.

    Raises:
        UserError: what the source refuses, a share that leaves no episode, or a tokeniser of the user's own that fails.
    """
    episodes = source.load()
    settings.check_choices(episodes.layout, source.id)
    held_out = held_out_episodes(len(episodes), validation_share, seed)
    fitted_to = ~rows_of(episodes.ends, held_out)[0] if len(held_out) else slice(None)
    check = check_data([episodes], episodes.returns())
    summary = {**summarize(episodes, source), "check": check, "layout": asdict(episodes.layout)}
    rewards = shape_rewards(episodes, settings.terminal_reward)
    values = return_to_go(rewards, episodes.ends, episodes.terminated, settings.discount)
    columns = [*episodes.observations.T, *episodes.actions.T, rewards, values]
    progress = progress_bar(columns, desc=f"fitting bins of {source.id}", unit="column", leave=False)
    discretizer = _fit((column[fitted_to] for column in progress), settings, episodes.layout)
    tokens = tokenize(episodes, rewards, values, discretizer)
    card = draw_card(episodes, summary)
    return TokenizedData(tokens, episodes.ends, episodes.terminated, discretizer, summary, card)


def _fit(columns: Iterable[np.ndarray], settings: TokenizerSettings, layout: TransitionLayout) -> Discretizer:
    """Bins by this project's tokeniser, or by one of the user's own."""
    if settings.external is None:
        return Discretizer.fit(columns, settings.bins, settings.binning, layout)
    tokenizer = make_tokenizer(settings.external)
    try:
        bins = list(tokenizer.fit(finite_columns(columns, layout), settings.bins, layout))
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"tokenizer: {settings.external.target} failed with {reason}") from error
    return Discretizer.of(bins, settings.bins, layout)
