"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import importlib
import os
import pickle
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from farama_notifications import notifications

from helpers.command_line import compose_config
from helpers.example_data import contents
from helpers.malicious import Malicious
from helpers.shared import shared
from trajectory.commands.errors import exit_on_user_error
from trajectory.files import CACHE_VARIABLE
from trajectory.locks import run_dir_lock
from trajectory.model.gpt import GPT
from trajectory.model.settings import GPTSettings
from trajectory.transition import TransitionLayout

gc.disable()  # while tests are imported and collected: there is hardly any garbage to look for
# what packages of Farama's say when they are first imported
NOTICES = {notice.strip() for versions in notifications.values() for notice in versions.values()}
FONTS = matplotlib.get_cachedir()  # which matplotlib looks for in the home that is the user's now
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else torch.get_num_threads()  # side by side, each takes one


def pytest_collection_finish() -> None:
    """What is there by now stays, and need not be looked through for garbage again."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Whatever number of threads a main left in this process that a test called."""
    torch.set_num_threads(THREADS)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Generator[None, Any, Any]:
    """CI installs all that tests need but a GPU: nothing else may be skipped there."""
    report = yield
    if report.skipped and os.environ.get("CI") and "GPU" not in str(report.longrepr):
        report.outcome, report.longrepr = "failed", f"skipped in CI: {report.longrepr}"
    return report


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tokens are kept away from the user's own; compiled libraries too, for all that test side by side."""
    cache = tmp_path_factory.mktemp("cache")
    native = shared(tmp_path_factory) / "native"
    native.mkdir(exist_ok=True)
    (cache / "native").symlink_to(native)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(cache))
        yield


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local Minari store, thrown away after the test."""
    path = tmp_path / "store"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(path))
    return path


@pytest.fixture
def refusal(
    tmp_path: Path, store: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """`refusal(main, *overrides)`: runs a main's function as its process would, gives the one line that it ends with.

    It must leave no run folder and change nothing else, in the store or beside it. Nobody has a Weights & Biases
    account.
    """
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    # the list of fonts is the machine's; one made anew would be left in the home
    monkeypatch.setenv("MPLCONFIGDIR", FONTS)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)

    def run(main: str, *overrides: str) -> str:
        function = getattr(importlib.import_module(f"trajectory.commands.{main}"), main)
        config = compose_config(main, *overrides)
        store.mkdir(exist_ok=True)
        before = contents(tmp_path)
        folder = tmp_path / "run"
        folder.mkdir()
        capfd.readouterr()
        with pytest.raises(SystemExit) as leave, exit_on_user_error(folder, debug=False, lock=run_dir_lock(folder)):
            function(config, folder)
        assert leave.value.code == 1
        assert contents(tmp_path) == before
        # a bar that shows what went on before is not part of the message
        said = [line for line in capfd.readouterr().err.splitlines() if line and "%|" not in line]
        (line,) = [line for line in said if line.strip() not in NOTICES]
        return line

    return run


@pytest.fixture(scope="session")
def make_gpt() -> Callable[..., GPT]:
    """`make_gpt(layout, **settings)`: a small float64 model, every parameter random, in evaluation mode.

    Biases, norms and positions begin training as constants; random ones show where a computation leaves them out.
    """

    def make(layout: TransitionLayout | None = None, **settings: Any) -> GPT:
        small: dict[str, Any] = {
            "n_layer": 2,
            "n_head": 2,
            "n_embd": 8,
            "window": 3,
            "bins": 5,
            "positions": "absolute",
        }
        gpt = GPT(GPTSettings(**(small | settings)), layout or TransitionLayout(2, 1)).double().eval()
        generator = torch.Generator().manual_seed(0)
        for parameter in gpt.parameters():
            torch.nn.init.normal_(parameter, std=0.5, generator=generator)
        return gpt

    return make


@pytest.fixture
def mark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that is there as soon as something was executed; the attack itself is proven to work."""
    path = tmp_path_factory.mktemp("mark") / "executed"
    pickle.loads(pickle.dumps(Malicious(path)))
    assert path.exists()
    path.unlink()
    return path
