"""`data/datamodule.py`: from a source to batches, with and without the cache."""

from __future__ import annotations

import gc
import weakref
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from helpers.synthetic_data import Reader, random_episodes, source_of, write_episodes
from trajectory.data.datamodule import TrajectoryDataModule
from trajectory.data.episodes import Episodes
from trajectory.data.returns import return_to_go, shape_rewards
from trajectory.data.settings import TokenizerSettings
from trajectory.data.windows import ShuffledBatches
from trajectory.errors import UserError
from trajectory.files import CACHE_VARIABLE
from trajectory.transition import TransitionLayout

LENGTHS, TERMINATED = [40, 1, 30, 90], [True, False, True, False]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture
def episodes() -> Episodes:
    return random_episodes(LENGTHS, TERMINATED)


@pytest.fixture
def path(tmp_path: Path, episodes: Episodes) -> Path:
    return write_episodes(tmp_path / "episodes.npz", episodes)


def datamodule(path: Path, reader: Reader | None = None, **changes: Any) -> TrajectoryDataModule:
    """With `setup` done."""
    settings: dict[str, Any] = {"window": 5, "batch_size": 16, "seed": 0} | changes
    tokenizer = settings.pop("tokenizer", TokenizerSettings(bins=20))
    data = TrajectoryDataModule(source_of(path, reader or Reader()), tokenizer, **settings)
    data.setup()
    return data


def batches(data: TrajectoryDataModule, epoch: int = 0) -> list[list[Any]]:
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, ShuffledBatches)
    loader.sampler.set_epoch(epoch)
    return [[part.dtype, part.tolist()] for batch in loader for part in batch]


def test_batches_are_the_same_through_the_cache_and_without_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, found = datamodule(path, reader := Reader()), datamodule(path, reader)
    assert reader.times == 1
    monkeypatch.setenv(CACHE_VARIABLE, str(path))  # a file: nothing can be kept there
    without = datamodule(path)
    for epoch in (0, 1):
        expected = batches(made, epoch)
        assert len(expected) == 2 * (sum(LENGTHS) // 16)
        assert batches(found, epoch) == expected
        assert batches(without, epoch) == expected


def test_batches_depend_on_seed_and_epoch(path: Path) -> None:
    data = datamodule(path)
    assert batches(data, 0) == batches(data, 0)
    assert batches(data, 0) != batches(data, 1)
    assert batches(data, 0) != batches(datamodule(path, seed=1), 0)


def test_tokens_are_those_of_observation_action_reward_and_value(path: Path, episodes: Episodes) -> None:
    tokenizer = TokenizerSettings(bins=20, discount=0.9, terminal_reward=-7.0)
    data = datamodule(path, tokenizer=tokenizer)
    rewards = shape_rewards(episodes, -7.0)
    values = return_to_go(rewards, episodes.ends, episodes.terminated, 0.9)
    numbers = np.column_stack([episodes.observations, episodes.actions, rewards, values])
    assert data.windows is not None
    assert torch.equal(data.windows.tokens.long(), data.discretizer.encode(torch.from_numpy(numbers)))
    assert data.windows.tokens.dtype is torch.uint8
    last = data.windows.tokens[episodes.ends[episodes.terminated] - 1, 4].long()
    assert data.discretizer.decode(last[:, None], slice(4, 5)).unique().tolist() == [-7.0]


def test_windows_have_the_asked_length_and_the_bins_stop_token(path: Path) -> None:
    data = datamodule(path, window=7)
    assert data.windows is not None
    tokens, mask = data.windows[torch.tensor([39, 40])]  # the ends of a terminated and of a cut off episode
    assert tokens.shape == (2, 7, 6)
    assert (tokens[:, 1:] == 20).all()
    assert mask.tolist() == [[True] * 7, [True] + [False] * 6]


def test_what_is_known_after_setup(path: Path, episodes: Episodes) -> None:
    data = datamodule(path)
    returns = [float(sum(part.astype(float))) for part in np.split(episodes.rewards, episodes.ends[:-1])]
    assert data.layout == TransitionLayout(3, 1)
    assert data.summary == {
        "id": "test/random-v0",
        "source": "own",
        "behaviour": "nobody",
        "episodes": 4,
        "steps": 161,
        "return_mean": pytest.approx(np.mean(returns)),
        "return_std": pytest.approx(np.std(returns)),
        "return_max": pytest.approx(max(returns)),
        "termination_rate": 0.5,
        "content_hash": episodes.content_hash(),
        "check": ["1 of 4 episodes have one transition"],
    }
    assert imread(BytesIO(data.card), format="png").ndim == 3


def test_setup_is_done_once_however_often_it_is_called(path: Path) -> None:
    data = datamodule(path, reader := Reader())
    windows = data.windows
    data.setup("fit")
    assert data.windows is windows
    assert reader.times == 1


class WatchingReader(Reader):
    """Knows whether any columns that it ever read are still in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.columns: list[weakref.ref[np.ndarray]] = []

    def __call__(self, path: Path) -> Episodes:
        episodes = super().__call__(path)
        self.columns += [weakref.ref(column) for column in (episodes.observations, episodes.actions, episodes.rewards)]
        return episodes


def test_nothing_of_the_episodes_is_held_while_training(path: Path) -> None:
    """Without the garbage collector's help, which may come late."""
    gc.disable()
    try:
        data = datamodule(path, reader := WatchingReader())
        assert [column() for column in reader.columns] == [None] * 3
    finally:
        gc.enable()
    assert data.windows is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"binning": "kmeans"}, "tokenizer.binning must be quantile or uniform, got 'kmeans'"),
        ({"bins": 1}, "tokenizer.bins must be at least 2, got 1"),
        ({"discount": 1.0}, "tokenizer.discount must be at least 0 and below 1, got 1.0"),
        ({"discount": -0.1}, "tokenizer.discount must be at least 0 and below 1, got -0.1"),
    ],
)
def test_tokenizer_settings_out_of_range_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        TokenizerSettings(**settings)
    assert str(error.value) == message


@pytest.mark.parametrize("batch_size", [0, -1, 2.5])
def test_a_batch_size_that_is_none_is_refused(path: Path, batch_size: Any) -> None:
    with pytest.raises(UserError, match=rf"data\.batch_size must be at least 1, got {batch_size}"):
        datamodule(path, batch_size=batch_size)


def test_a_source_of_other_dimensions_than_its_environment_is_refused(tmp_path: Path, episodes: Episodes) -> None:
    wide = Episodes(np.tile(episodes.observations, 2), *list(vars(episodes).values())[1:])
    with pytest.raises(UserError, match=r"dataset\.id='test/random-v0' must have the dimensions of Pendulum-v1"):
        datamodule(write_episodes(tmp_path / "wide.npz", wide))
    assert list((tmp_path / "cache").iterdir()) == []
