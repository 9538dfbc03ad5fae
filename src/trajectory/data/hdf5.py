"""Columns of an HDF5 file that lie in that file alone."""

from __future__ import annotations

from typing import Any

from trajectory.errors import require


def check_inside(column: Any, path: str, source_name: str) -> None:
    """Raise a `UserError` for an `h5py.Dataset` that leads out of its file: by a link, or by rows kept elsewhere.

    Args:
        path: of the file that was opened.
        source_name: of the file, for messages.
    """
    outside = column.file.filename != path or column.external is not None or column.is_virtual
    require(not outside, source_name, "a file that holds its own columns", f"{column.name}, which lies in another")
