"""Models on the Hugging Face hub and in W&B's artifacts: as exports alone, so nothing that is downloaded can run.

A model is a folder with weights as safetensors and a card in JSON (`trajectory.model.exported`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trajectory.errors import UserError, first_line, require
from trajectory.files import CARD, WEIGHTS, cache_path
from trajectory.imports import optional_import

HUB, WANDB = "hf://", "wandb://"
NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
ARTIFACT = re.compile(r"[\w.-]+/[\w.-]+/[\w.-]+(:[\w.-]+)?", re.ASCII)


def download(repository: str) -> tuple[Path, str]:
    """A model of the hub, from its cache if it is there.

    Args:
        repository: `user/name`, or `user/name@revision`.

    Returns:
        Its folder, and its name with the commit that was found.

    Raises:
        UserError: no such repository or revision, no network, or a repository without an export.
    """
    name, _, revision = repository.partition("@")
    key = f"checkpoint={HUB}{repository}"
    require(NAME.fullmatch(name) is not None, "checkpoint", f"{HUB}user/name or {HUB}user/name@revision", repository)
    with optional_import(key, "hub"):
        from huggingface_hub import snapshot_download
    with _one_line(key):
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=[CARD, WEIGHTS]))
    missing = [file for file in (CARD, WEIGHTS) if not (folder / file).is_file()]
    require(not missing, key, f"a repository with {CARD} and {WEIGHTS}", f"one without {', '.join(missing)}")
    return folder, f"{HUB}{name}@{folder.name}"  # the cache names its folders by commits


def upload(folder: Path, repository: str, *, private: bool = False) -> str:
    """Put an export on the hub, with a model card in the hub's format.

    Args:
        folder: an export.
        repository: `user/name`; it is made if it is not there.

    Returns:
        Its name with the new commit.

    Raises:
        UserError: no login, no network, or the hub refuses it.
    """
    require(NAME.fullmatch(repository) is not None, "repository", "user/name", repository)
    with optional_import("push_to_hub", "hub"):
        from huggingface_hub import CommitOperationAdd, HfApi
    card = json.loads((folder / CARD).read_text())
    contents: dict[str, Any] = {name: str(folder / name) for name in (CARD, WEIGHTS)}
    contents["README.md"] = model_card(card).encode()
    operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
    with _one_line(f"{HUB}{repository}"):
        api = HfApi()
        api.create_repo(repository, exist_ok=True, private=private)
        commit = api.create_commit(repository, operations, commit_message="A model and its card")
    return f"{HUB}{repository}@{commit.oid}"


def model_card(card: dict[str, Any]) -> str:
    """The README of a model on the hub: its header in YAML, then what the card says."""
    parameters = card["hyper_parameters"]
    environment, about = parameters["environment"], card.get("about") or {}
    header = [
        "---",
        f"license: {json.dumps(about.get('licence', 'mit').lower())}",
        "library_name: trajectory-transformer",
        "pipeline_tag: reinforcement-learning",
        "tags: [offline-reinforcement-learning, trajectory-transformer, safetensors]",
        "---",
    ]
    lines = [
        f"# Trajectory Transformer for {environment['id'] or environment['name']}",
        f"Trained on {parameters['dataset'].get('id', 'data of its own')}, {card['global_step']:,} steps.",
        *(f"**{key}**: {value if isinstance(value, str) else json.dumps(value)}" for key, value in about.items()),
    ]
    return "\n".join(header) + "\n\n" + "\n\n".join(lines) + "\n"


def download_artifact(name: str) -> tuple[Path, str]:
    """A model among W&B's artifacts.

    Args:
        name: `entity/project/name` or `entity/project/name:alias`.

    Returns:
        Its folder if it is an export, else its one checkpoint file; and its name with the version that was found.

    Raises:
        UserError: no such artifact, no login, no network, or an artifact without a checkpoint.
    """
    key = f"checkpoint={WANDB}{name}"
    require(ARTIFACT.fullmatch(name) is not None, "checkpoint", f"{WANDB}entity/project/name:alias", name)
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        raise UserError(f"{key} needs W&B, which WANDB_MODE={os.environ['WANDB_MODE']} switches off")
    import wandb

    with _one_line(key):
        login = bool(os.environ.get("WANDB_API_KEY")) or wandb.login(prompt=False)
        require(login, key, "asked for after `wandb login`", "no login")
        artifact = wandb.Api(timeout=20).artifact(name if ":" in name else f"{name}:latest")
        folder = Path(artifact.download(str(cache_path() / "wandb" / str(artifact.digest))))
        version = f"{WANDB}{name.partition(':')[0]}:{artifact.version}"
    if (folder / CARD).is_file():
        return folder, version
    files = sorted(folder.glob("*.ckpt"))
    require(len(files) == 1, key, f"an artifact with {CARD} or one .ckpt file", f"{len(files)} such files")
    return files[0], version


@contextmanager
def _one_line(key: str) -> Generator[None]:
    """Whatever a client raises, in one line that names what was asked for."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # clients raise errors of many kinds
        offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on") and key.count(HUB)
        reason = "HF_HUB_OFFLINE is set, and it is not in the cache" if offline else " ".join(str(error).split())[:200]
        raise UserError(f"{key} cannot be reached: {reason or first_line(error)}") from error
