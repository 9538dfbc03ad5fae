"""Which checkpoint a name means: a file, a folder of an export, a model of the package, of a hub, or of W&B."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from trajectory.errors import UserError
from trajectory.files import CARD, check_checkpoint_file
from trajectory.hub import HUB, WANDB, download, download_artifact

PRETRAINED = Path(__file__).parent / "pretrained"  # a folder for each model
PREFIX = "pretrained/"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)


@dataclass(frozen=True)
class Located:
    """A checkpoint on this machine.

    Args:
        path: a file, or a folder that an export has written.
        name: as it was asked for; of what was downloaded, with the exact version.
    """

    path: Path
    name: str

    @property
    def recorded(self) -> str:
        """What stands in results: the absolute path, or the name of what lies elsewhere."""
        return self.name if self.name.startswith((PREFIX, HUB, WANDB)) else str(self.path.absolute())


def shipped() -> list[str]:
    """The models that come with the package."""
    return sorted(path.parent.name for path in PRETRAINED.glob(f"*/{CARD}"))


def locate(name: str) -> Located:
    """The checkpoint of a config: a path, `pretrained/NAME`, `hf://user/name[@revision]`, `wandb://entity/project/name:alias`.

    Raises:
        UserError: there is no such file or model, or it cannot be downloaded.
    """
    if name.startswith(HUB):
        return Located(*download(name.removeprefix(HUB)))
    if name.startswith(WANDB):
        return Located(*download_artifact(name.removeprefix(WANDB)))
    path = Path(name)
    if name.startswith(PREFIX) and not path.exists():
        path = PRETRAINED / name.removeprefix(PREFIX)
        if path.name not in shipped() or name != f"{PREFIX}{path.name}":
            raise UserError(f"checkpoint must be a path or one of {_listed()}, got {name!r}")
        return Located(path, name)
    check_checkpoint_file(path)
    return Located(path, name)


def locate_pretrained(name: str) -> Located:
    """What `from_pretrained` means: as for `locate`, and models of the package and of the hub without their prefixes.

    Raises:
        UserError: there is no such file or model, or it cannot be downloaded.
    """
    if name in shipped():
        return locate(f"{PREFIX}{name}")
    if Path(name).exists() or name.startswith((PREFIX, HUB, WANDB)):
        return locate(name)
    if REPOSITORY.fullmatch(name):
        return locate(f"{HUB}{name}")
    raise UserError(f"the model must be a path, user/name on the hub, or one of {_listed()}, got {name!r}")


def _listed() -> str:
    return ", ".join(f"{PREFIX}{name}" for name in shipped()) or "the package's, which has none"
