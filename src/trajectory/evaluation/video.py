"""An MP4 of an episode, drawn off screen from recorded simulator states."""

from __future__ import annotations

import ctypes.util
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

MISSING = (
    "no video: no offscreen OpenGL was found; on Debian or Ubuntu install libegl1 libegl-mesa0 libgl1-mesa-dri "
    "(or libosmesa6)"
)


def choose_gl() -> None:
    """Set MUJOCO_GL to an offscreen library that is there; must run before MuJoCo is first imported."""
    if "MUJOCO_GL" in os.environ or not sys.platform.startswith("linux"):
        return
    for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = name
            return
    os.environ["MUJOCO_GL"] = "disable"


def write_video(
    path: Path, env: Any, states: list[np.ndarray], *, size: int = 480, fps: int = 30, progress: bool = True
) -> str | None:
    """Draw MuJoCo positions as an MP4, skipping frames so that it plays in real time.

    Returns:
        None when the video was written, else one line that says why not and what to install.
    """
    try:
        import imageio.v2 as imageio

        mujoco: Any = import_module("mujoco")  # its names come from C++, unknown to type checkers
    except ImportError as error:
        return f"no video: {error}; install the package `imageio[ffmpeg]`"
    simulator: Any = env.unwrapped
    if not states or not isinstance(getattr(simulator, "model", None), mujoco.MjModel):
        return f"no video: {env.spec.id if env.spec else env} is not simulated by MuJoCo"
    model = simulator.model
    stride = max(1, round(1 / (fps * simulator.dt)))
    temporary = path.with_name(f".{path.name}")
    try:
        # antialiasing, shadows and reflections cost most of a frame in software
        model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        with (
            mujoco.Renderer(model, size, size) as renderer,
            imageio.get_writer(temporary, format="FFMPEG", fps=fps) as video,
        ):
            writer: Any = video
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
            data = mujoco.MjData(model)
            camera = "track" if _has_camera(model, "track") else -1
            for state in tqdm(states[::stride], desc="video", unit="frame", disable=not progress, leave=False):
                data.qpos[:] = state
                mujoco.mj_forward(model, data)
                renderer.update_scene(data, camera)
                writer.append_data(renderer.render())
    except Exception as error:  # drivers fail in many ways, none of which may cost the results
        temporary.unlink(missing_ok=True)
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"{MISSING} ({detail[:120]})"
    temporary.replace(path)
    return None


def _has_camera(model: Any, name: str) -> bool:
    return any(model.camera(index).name == name for index in range(model.ncam))
