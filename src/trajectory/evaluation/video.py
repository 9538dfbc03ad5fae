"""An episode next to its plans, as an MP4 and as a picture, rendered off screen from recorded states."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trajectory.environments.make import make_environment
from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import first_line
from trajectory.evaluation.drawing import (
    RenderFunction,
    RenderingError,
    frame_renderer,
    qpos_from_observations,
    seconds_per_step,
)
from trajectory.evaluation.episodes import Recording
from trajectory.evaluation.picture import draw_picture
from trajectory.files import write_file
from trajectory.progress import progress_bar

log = logging.getLogger(__name__)

FPS = 30
CAPTION_HEIGHT = 32  # pixels

PlannedStates = Mapping[int, np.ndarray]  # by step: (H, nq) positions of the plan that was made before it


def draw_episode(
    folder: Path,
    environment: EnvironmentSettings,
    recording: Recording,
    *,
    terminated: bool,
    size: int = 480,
    progress: bool = True,
) -> None:
    """Write `episode.mp4` and `rollout.png` to `folder`. Without rendering, log why and draw only the numbers.

    Args:
        terminated: whether the task ended, rather than a time limit.
        size: height and width of a frame in pixels.
    """
    env, picture = make_environment(environment), None
    try:
        with frame_renderer(env, size=size) as draw:
            planned = planned_states(env, recording)
            picture = draw_picture(recording, terminated=terminated, shown=(draw, planned))
            path, dt = folder / "episode.mp4", seconds_per_step(env)
            write_video(path, draw, recording, planned, dt=dt, progress=progress)
    except RenderingError as reason:
        log.warning("no video: %s", reason)
    write_file(folder / "rollout.png", picture or draw_picture(recording, terminated=terminated))
    env.close()


def planned_states(env: Any, recording: Recording) -> dict[int, np.ndarray]:
    """(H, nq) positions of every recorded plan.

    None if no plan looks beyond the present state; none, with a logged reason, if observations lack positions.
    """
    if all(len(plan.observations) <= 1 for plan in recording.plans.values()):
        return {}
    try:
        return {
            step: qpos_from_observations(env, plan.observations, recording.states[step])
            for step, plan in recording.plans.items()
        }
    except RenderingError as reason:
        log.warning("plans are not drawn: %s", reason)
        return {}


def write_video(
    path: Path,
    draw: RenderFunction,
    recording: Recording,
    planned: PlannedStates,
    *,
    dt: float,
    fps: int = FPS,
    progress: bool = True,
) -> None:
    """Write an MP4 of the episode and, to its right, of the latest plan at the same time.

    Args:
        planned: beginning with step 0. The last state of a plan stays until the next plan. Empty for the episode alone.
        dt: seconds of a step. The video plays in real time.
        fps: the approximate frame rate, reached by skipping steps; lower if steps are longer.

    Raises:
        RenderingError: why there is no video, and what to install.
    """
    stride = max(1, round(1 / (fps * dt)))
    steps = range(0, len(recording.states), stride)

    def frames() -> Iterator[np.ndarray]:
        caption = None
        for step in progress_bar(steps, desc="video", unit="frame", disable=not progress, leave=False):
            sides = [draw(recording.states[step])]
            texts = [f"step {step}: return {sum(recording.rewards[:step]):.1f}"]
            if planned:
                made = max(moment for moment in planned if moment <= step)
                ahead = min(step - made, len(planned[made]) - 1)
                planned_return = sum(recording.rewards[:made]) + recording.plans[made].rewards[:ahead].sum()
                sides.append(draw(planned[made][ahead]))
                texts.append(f"planned at step {made}: return {planned_return:.1f}")
            caption = caption or Caption(len(sides), sides[0].shape[1])
            yield np.concatenate([caption.render(texts), np.concatenate(sides, axis=1)])

    write_frames(path, frames(), fps=1 / (stride * dt))


def write_frames(path: Path, frames: Iterable[np.ndarray], *, fps: float) -> None:
    """Write (height, width, 3) uint8 frames as an MP4, completely or not at all.

    Raises:
        RenderingError: why there is no video, and what to install; also what rendering the frames raises.
    """
    temporary = path.with_name(f".{path.name}")
    try:
        import imageio.v2 as imageio

        with imageio.get_writer(temporary, format="FFMPEG", fps=fps) as video:
            writer: Any = video
            for frame in frames:
                writer.append_data(frame)
        temporary.replace(path)
    except ImportError as error:
        raise RenderingError(f"{error}; install the package `imageio[ffmpeg]`") from error
    except OSError as error:
        raise RenderingError(f"{path} cannot be written: {first_line(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


class Caption:
    """A line of text above each of several frames, as pixels."""

    def __init__(self, columns: int, width: int) -> None:
        figure = Figure(figsize=(columns * width / 100, CAPTION_HEIGHT / 100), dpi=100)
        self.canvas = FigureCanvasAgg(figure)
        size = width / 36  # points: some forty letters fit
        self.texts = [
            figure.text((column + 0.5) / columns, 0.5, "", ha="center", va="center", fontsize=size)
            for column in range(columns)
        ]

    def render(self, texts: list[str]) -> np.ndarray:
        """(CAPTION_HEIGHT, columns * width, 3) uint8."""
        for artist, text in zip(self.texts, texts, strict=True):
            artist.set_text(text)
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())[:, :, :3]
