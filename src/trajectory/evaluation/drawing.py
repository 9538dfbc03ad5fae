"""Frames of MuJoCo states, drawn off screen: of recorded positions, or of those that decoded observations tell of."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np

from trajectory.errors import first_line

OPENGL_HINT = (
    "no offscreen OpenGL was found; on Debian or Ubuntu install libegl1 libegl-mesa0 libgl1-mesa-dri (or libosmesa6)"
)

opengl_errors: list[str] = []  # why there was no OpenGL: asked for it again, some libraries end the process

RenderFunction = Callable[[np.ndarray], np.ndarray]  # (nq,) positions -> (size, size, 3) uint8 frame


class RenderingError(Exception):
    """Nothing can be drawn; one line says why, and what to install where that would help."""


@contextmanager
def frame_renderer(env: Any, *, size: int = 480) -> Generator[RenderFunction]:
    """A function that draws frames of an environment, until the context ends.

    Args:
        size: height and width of a frame in pixels.

    Raises:
        RenderingError: MuJoCo does not simulate the environment, or there is no OpenGL; the function raises it too.
    """
    model = _simulator(env).model
    mujoco: Any = import_module("mujoco")  # its names come from C++, unknown to type checkers
    # antialiasing, shadows and reflections cost most of a frame in software
    model.vis.quality.offsamples = 0
    model.vis.global_.offwidth = model.vis.global_.offheight = size
    if opengl_errors:
        raise RenderingError(opengl_errors[0])
    try:
        with _driver_errors():
            renderer = mujoco.Renderer(model, size, size)
    except RenderingError as reason:
        opengl_errors.append(str(reason))
        raise
    with _driver_errors():
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
    data = mujoco.MjData(model)
    names = [model.camera(index).name for index in range(model.ncam)]
    camera = "track" if "track" in names else -1

    def draw(qpos: np.ndarray) -> np.ndarray:
        with _driver_errors():
            data.qpos[:] = qpos
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera)
            return renderer.render()

    try:
        yield draw
    finally:
        renderer.close()


def qpos_from_observations(env: Any, observations: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
    """The MuJoCo positions that an environment's observations tell of.

    Gymnasium's locomotion tasks observe positions and then velocities, all but the root's horizontal position, which
    is integrated here from its velocity.

    Args:
        env: is reset, to find out what its observations hold.
        observations: (H, observation_dim), of successive steps.
        start: (nq,) positions at the first of them, for those that are not observed; None begins at the origin.

    Returns:
        (H, nq) positions.

    Raises:
        RenderingError: MuJoCo does not simulate the environment, or its observations are not positions and velocities.
    """
    simulator = _simulator(env)
    observation, _ = env.reset(seed=0)
    qpos, qvel = simulator.data.qpos, simulator.data.qvel
    for hidden in range(3):  # coordinates of the root that are not observed
        told = np.concatenate([qpos[hidden:], qvel])
        if len(observation) >= len(told) and np.allclose(observation[: len(told)], told):
            break
    else:
        raise RenderingError(f"the observations of {_name(env)} do not begin with MuJoCo's positions and velocities")
    seen = len(qpos) - hidden
    velocities = observations[:, seen : seen + hidden]
    moved = seconds_per_step(env) * (velocities[1:] + velocities[:-1]) / 2
    first = np.zeros((1, hidden)) if start is None else start[None, :hidden]
    return np.concatenate([np.cumsum(np.concatenate([first, moved]), axis=0), observations[:, :seen]], axis=1)


def seconds_per_step(env: Any) -> float:
    """Simulated time between two observations."""
    return getattr(env.unwrapped, "dt", None) or 1 / env.metadata.get("render_fps", 30)


def _simulator(env: Any) -> Any:
    """The environment below all wrappers, which has MuJoCo's model and data."""
    mujoco: Any = import_module("mujoco")
    simulator: Any = env.unwrapped
    if not isinstance(getattr(simulator, "model", None), mujoco.MjModel):
        raise RenderingError(f"{_name(env)} is not simulated by MuJoCo")
    return simulator


def _name(env: Any) -> str:
    return env.spec.id if env.spec else str(env)


@contextmanager
def _driver_errors() -> Generator[None]:
    """Drivers fail in many ways, none of which may cost the results."""
    try:
        yield
    except Exception as error:
        raise RenderingError(f"{OPENGL_HINT} ({first_line(error)[:120]})") from error
