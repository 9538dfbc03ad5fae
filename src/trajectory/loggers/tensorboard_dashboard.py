"""TensorBoard as a run's dashboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from trajectory.imports import optional_import
from trajectory.loggers.dashboard import Dashboard
from trajectory.loggers.metrics_file import MetricsFile

MAX_GIF_FRAMES = 100


class TensorBoardDashboard(Dashboard):
    """TensorBoard's event file, in the folder `tensorboard` of a run."""

    def __init__(self, folder: Path, file: MetricsFile) -> None:
        with optional_import("logger=tensorboard", "tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

        super().__init__(file)
        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def send(self, metrics: Mapping[str, Any], step: int) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def log_picture(self, name: str, path: Path, step: int) -> None:
        """Show a PNG; a video becomes an animated GIF."""
        import imageio.v2 as imageio

        if path.suffix == ".png":
            self.writer.add_image(name, imageio.imread(path), step, dataformats="HWC")
        else:
            self.add_gif(name, as_gif(path), step)

    def add_gif(self, name: str, gif: bytes, step: int) -> None:
        """Show an animated GIF among the images."""
        from torch.utils.tensorboard import summary as proto

        width, height = (int.from_bytes(gif[offset : offset + 2], "little") for offset in (6, 8))
        image = proto.Summary.Image(encoded_image_string=gif, width=width, height=height, colorspace=3)
        summary = proto.Summary(value=[proto.Summary.Value(tag=name, image=image)])
        self.writer._get_file_writer().add_summary(summary, step)  # the public API takes no GIF

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        columns: list[Any] = list(rows[0])
        lines = [columns, ["---"] * len(columns), *([str(value) for value in row.values()] for row in rows)]
        self.writer.add_text(name, "\n".join(f"| {' | '.join(line)} |" for line in lines), step)

    def log_results(self, kind: str, results: Mapping[str, Any]) -> None:
        """Nothing to do: they are in `results.json`."""

    def flush(self) -> None:
        self.writer.flush()

    def finish(self, folder: Path, dataset: dict[str, Any] | None, checkpoint: str | None) -> None:
        self.writer.close()


def begin_tensorboard(
    folder: Path, config: dict[str, Any], rows: Sequence[Mapping[str, float]], file: MetricsFile
) -> TensorBoardDashboard:
    """An event file that replaces earlier ones in its folder.

    Args:
        rows: of `metrics.csv`, with which the new file begins.
    """
    earlier = list((folder / "tensorboard").glob("events.*"))
    board = TensorBoardDashboard(folder, file)
    for row in rows:
        board.send({name: value for name, value in row.items() if name != "step"}, int(row["step"]))
    board.writer.add_text("config", f"```\n{OmegaConf.to_yaml(OmegaConf.create(config))}\n```")
    board.writer.flush()
    for path in earlier:
        path.unlink()
    return board


def as_gif(video: Path) -> bytes:
    """A video as a GIF of half its width and height, with at most `MAX_GIF_FRAMES` evenly spaced frames."""
    import imageio.v3 as imageio

    stride = -(-sum(1 for _ in imageio.imiter(video)) // MAX_GIF_FRAMES)
    frames = np.stack([frame[::2, ::2].copy() for frame in islice(imageio.imiter(video), None, None, stride)])
    gif = BytesIO()
    imageio.imwrite(gif, frames, extension=".gif", duration=100, loop=0)
    return gif.getvalue()
