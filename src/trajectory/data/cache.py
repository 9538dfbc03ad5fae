"""Tokenised datasets on disk, so that a second start on the same data does not tokenise again.

An entry is a folder named by a hash of all that it depends on: the data's own bytes, the settings, and the code that
tokenises. It is written under another name and renamed, so that it is there as a whole or not at all, and of runs that
start at once one makes it while the others wait. Its files are held against their hashes before they are used. Deleting
any of it is always safe.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trajectory.data.discretizer import Discretizer
from trajectory.errors import UserError
from trajectory.files import TMP_PREFIX, cache_path, remove_stale
from trajectory.locks import file_lock

HASHES = "sha256.json"  # of the other files of an entry

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenizedData:
    """What training needs of a dataset.

    Args:
        tokens: (T, D), the smallest integer type.
        ends: (E,) int64, the row after the last transition of each episode.
        terminated: (E,) bool.
        summary: what stands in checkpoints and results about the data, with its dimensions.
        card: the data card, a PNG.
    """

    tokens: Tensor
    ends: np.ndarray
    terminated: np.ndarray
    discretizer: Discretizer
    summary: dict[str, Any]
    card: bytes


def cache_key(files: Sequence[Path], settings: dict[str, Any]) -> str:
    """A hash of the bytes of `files`, of `settings` and of the code of this room.

    Raises:
        UserError: a file that cannot be read.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for path in [*files, *sorted(Path(__file__).parent.glob("*.py"))]:
        try:
            digest.update(_hash(path).encode())
        except OSError as error:
            raise UserError(f"dataset: {path} must be a file that can be read: {error}") from error
    return digest.hexdigest()[:32]


def load_tokens(key: str) -> TokenizedData | None:
    """The entry of a key, its tokens mapped from the file rather than read; None where there is none that is whole."""
    folder = cache_path() / key
    try:
        if not folder.is_dir():
            return None
        for name, written in json.loads((folder / HASHES).read_text()).items():
            if _hash(folder / name) != written:
                raise ValueError(f"{name} is not what was written")
        summary = json.loads((folder / "summary.json").read_text())
        # copy on write: torch has no tensors that cannot be written
        tokens = torch.from_numpy(np.load(folder / "tokens.npy", mmap_mode="c"))
        with np.load(folder / "episodes.npz") as file:
            ends, terminated = file["ends"], file["terminated"]
            bins = {name: torch.from_numpy(file[name]) for name in ("boundaries", "values", "counts")}
        discretizer = Discretizer(*bins["values"].shape)
        discretizer.load_state_dict(bins)
        return TokenizedData(tokens, ends, terminated, discretizer, summary, (folder / "card.png").read_bytes())
    except Exception as error:  # what the readers of a damaged file raise differs
        log.warning("%s is damaged and made anew: %s", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return None


@contextmanager
def tokens_lock(key: str, dataset_id: str) -> Generator[None]:
    """Only one process at a time makes the entry of a key; where the cache cannot be written, each its own."""
    root = cache_path()
    with ExitStack() as stack:
        with suppress(OSError):
            root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(file_lock(root / f".{key}.lock", f"tokenises {dataset_id}"))
        yield


def save_tokens(key: str, data: TokenizedData) -> None:
    """Keep an entry. Without room or permission there is none, and one line says so: nothing else depends on it."""
    root = cache_path()
    hidden: Path | None = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        remove_stale(root, TMP_PREFIX)
        hidden = Path(tempfile.mkdtemp(prefix=TMP_PREFIX, dir=root))
        np.save(hidden / "tokens.npy", data.tokens.numpy())
        bins = {name: value.numpy() for name, value in data.discretizer.state_dict().items()}
        np.savez(hidden / "episodes.npz", ends=data.ends, terminated=data.terminated, **bins)
        (hidden / "summary.json").write_text(json.dumps(data.summary, indent=1))
        (hidden / "card.png").write_bytes(data.card)
        (hidden / HASHES).write_text(json.dumps({path.name: _hash(path) for path in hidden.iterdir()}))
        if not (root / key).exists():
            hidden.rename(root / key)
    except OSError as error:
        if not (root / key).exists():
            log.warning("the tokens of %s are not kept for a next start: %s", data.summary["id"], error)
    finally:
        if hidden is not None:
            shutil.rmtree(hidden, ignore_errors=True)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
