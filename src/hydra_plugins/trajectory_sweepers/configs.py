"""Lets the files of `conf/hydra/` be called as the plugins call their own."""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.plugins.search_path_plugin import SearchPathPlugin

GROUPS = ("launcher", "sweeper")


class OwnConfigs(SearchPathPlugin):
    """Hydra would take a stored config of the same name for a schema of the file, warn, and refuse what it adds."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Forget what is stored under the name of a file of the main's config folder."""
        stored = ConfigStore.instance().repo.get("hydra", {})
        paths = [part.path for part in search_path.get_path() if part.provider == "main"]
        for folder in (Path(path.removeprefix("file://")) for path in paths):
            for group in GROUPS:
                for path in (folder / "hydra" / group).glob("*.yaml"):
                    stored.get(group, {}).pop(path.name, None)
