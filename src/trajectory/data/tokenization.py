"""From a dataset to its tokens, from the cache or computed."""

from __future__ import annotations

from dataclasses import asdict

from trajectory.data.cache import TokenizedData, cache_key, load_tokens, save_tokens, tokens_lock
from trajectory.data.card import draw_card
from trajectory.data.discretizer import Discretizer
from trajectory.data.returns import return_to_go, shape_rewards
from trajectory.data.settings import TokenizerSettings
from trajectory.data.source import Source, summarize
from trajectory.data.windows import tokenize
from trajectory.hardware import release_memory
from trajectory.progress import progress_bar
from trajectory.targets import resolve_target


def load_or_tokenize(source: Source, settings: TokenizerSettings) -> TokenizedData:
    """The tokens of a dataset from the cache; otherwise computed and put into the cache.

    Raises:
        UserError: what the source refuses.
    """
    if not isinstance(settings.binning, str):  # a user's binning may change without its name
        return tokenize_source(source, settings)
    key = cache_key(source.files, {"source": source.cache_metadata(), "tokenizer": asdict(settings)})
    data = load_tokens(key)
    if data is None:
        with tokens_lock(key, source.id):
            data = load_tokens(key)
            if data is None:
                data = tokenize_source(source, settings)
                release_memory()
                save_tokens(key, data)
    return data


def tokenize_source(source: Source, settings: TokenizerSettings) -> TokenizedData:
    """Load a dataset, fit the bins and tokenise, with memory for the data and a few columns.

    Raises:
        UserError: what the source refuses.
    """
    binning = settings.binning
    if not isinstance(binning, str):
        binning = resolve_target(binning, "tokenizer.binning", {}).instantiate()
    episodes = source.load()
    summary = {**summarize(episodes, source), "layout": asdict(episodes.layout)}
    rewards = shape_rewards(episodes, settings.terminal_reward)
    values = return_to_go(rewards, episodes.ends, episodes.terminated, settings.discount)
    columns = [*episodes.observations.T, *episodes.actions.T, rewards, values]
    progress = progress_bar(columns, desc=f"fitting bins of {source.id}", unit="column", leave=False)
    discretizer = Discretizer.fit(progress, settings.bins, binning, episodes.layout)
    tokens = tokenize(episodes, rewards, values, discretizer)
    card = draw_card(episodes, summary)
    return TokenizedData(tokens, episodes.ends, episodes.terminated, discretizer, summary, card)
