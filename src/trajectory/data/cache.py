"""Tokenised datasets on disk, so that a second start on the same data does not tokenise again.

An entry is a folder named by a hash of everything that it depends on: the bytes of the data, the settings, and the code
of this package. It is written under a temporary name and renamed, so it is complete or not there. If several runs start
at once, one makes the entry and the others wait. Files are checked against their hashes before use. Deleting an entry
is always safe.
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

from trajectory import spaces
from trajectory.data.discretizer import Discretizer
from trajectory.errors import UserError
from trajectory.files import TMP_PREFIX, cache_path, remove_stale
from trajectory.locks import file_lock

HASHES = "sha256.json"  # of the other files of an entry

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenizedData:
    """A tokenised dataset.

    Args:
        tokens: (T, D), in the smallest integer type.
        ends: (E,) int64, the row after the last transition of each episode.
        terminated: (E,) bool.
        summary: of the data, for checkpoints and results, and the dimensions of a transition.
        card: the data card, a PNG.
    """

    tokens: Tensor
    ends: np.ndarray
    terminated: np.ndarray
    discretizer: Discretizer
    summary: dict[str, Any]
    card: bytes


def cache_key(files: Sequence[Path], settings: dict[str, Any]) -> str:
    """A hash of the bytes of `files`, of `settings` and of the code of this package and of `spaces`.

    Raises:
        UserError: a file that cannot be read.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for path in [*files, *sorted(Path(__file__).parent.rglob("*.py")), Path(spaces.__file__)]:
        try:
            digest.update(_hash(path).encode())
        except OSError as error:
            raise UserError(f"dataset: {path} must be a file that can be read: {error}") from error
    return digest.hexdigest()[:32]


def load_tokens(key: str) -> TokenizedData | None:
    """The entry of a key; None if there is no complete one. Its tokens are memory-mapped."""
    folder = cache_path() / key
    try:
        if not folder.is_dir():
            return None
        for name, written in json.loads((folder / HASHES).read_text()).items():
            if _hash(folder / name) != written:
                raise ValueError(f"{name} is not what was written")
        summary = json.loads((folder / "summary.json").read_text())
        # copy-on-write, because torch has no read-only tensors
        tokens = torch.from_numpy(np.load(folder / "tokens.npy", mmap_mode="c"))
        with np.load(folder / "episodes.npz") as file:
            ends, terminated = file["ends"], file["terminated"]
            bins = {name: torch.from_numpy(file[name]) for name in ("boundaries", "values", "counts")}
        discretizer = Discretizer(*bins["values"].shape)
        discretizer.load_state_dict(bins)
        return TokenizedData(tokens, ends, terminated, discretizer, summary, (folder / "card.png").read_bytes())
    except Exception as error:  # the readers of a damaged file raise errors of many types
        log.warning("%s is damaged and made anew: %s", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return None


@contextmanager
def tokens_lock(key: str, dataset_id: str) -> Generator[None]:
    """Let one process at a time make the entry of a key. If the cache cannot be written, each process makes its own."""
    root = cache_path()
    with ExitStack() as stack:
        with suppress(OSError):
            root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(file_lock(root / f".{key}.lock", f"tokenises {dataset_id}"))
        yield


def save_tokens(key: str, data: TokenizedData) -> None:
    """Write an entry. A full disk or a missing permission only costs the cache, and is logged in one line."""
    root = cache_path()
    temporary: Path | None = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        remove_stale(root, TMP_PREFIX)
        temporary = Path(tempfile.mkdtemp(prefix=TMP_PREFIX, dir=root))
        np.save(temporary / "tokens.npy", data.tokens.numpy())
        bins = {name: value.numpy() for name, value in data.discretizer.state_dict().items()}
        np.savez(temporary / "episodes.npz", ends=data.ends, terminated=data.terminated, **bins)
        (temporary / "summary.json").write_text(json.dumps(data.summary, indent=1))
        (temporary / "card.png").write_bytes(data.card)
        (temporary / HASHES).write_text(json.dumps({path.name: _hash(path) for path in temporary.iterdir()}))
        if not (root / key).exists():
            temporary.rename(root / key)
    except OSError as error:
        if not (root / key).exists():
            log.warning("the tokens of %s are not kept for a next start: %s", data.summary["id"], error)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
