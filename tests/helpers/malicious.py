"""An object whose pickle executes something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


class Malicious:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)
