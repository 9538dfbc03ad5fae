"""Off-screen rendering of MuJoCo states, from recorded positions or from decoded observations."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np

from trajectory.environments.make import action_repeat
from trajectory.errors import first_line

OPENGL_HINT = (
    "no offscreen OpenGL was found; on Debian or Ubuntu install libegl1 libegl-mesa0 libgl1-mesa-dri (or libosmesa6)"
)

opengl_errors: list[str] = []  # kept, because a second attempt to open a missing OpenGL crashes some libraries

RenderFunction = Callable[[np.ndarray], np.ndarray]  # (nq,) positions -> (size, size, 3) uint8 frame


class RenderingError(Exception):
    """Nothing can be rendered. The message says why in one line, and what to install if that helps."""


@contextmanager
def frame_renderer(env: Any, *, size: int = 480) -> Generator[RenderFunction]:
    """A function that renders frames of an environment, valid during the block.

    Args:
        size: height and width of a frame in pixels.

    Raises:
        RenderingError: MuJoCo does not simulate the environment, or there is no OpenGL. The function raises it too.
    """
    model = _simulator(env).model
    mujoco: Any = import_module("mujoco")  # a C++ module, whose names type checkers do not know
    # in software, antialiasing, shadows and reflections take most of the time
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

    def render(qpos: np.ndarray) -> np.ndarray:
        with _driver_errors():
            data.qpos[:] = qpos
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera)
            return renderer.render()

    try:
        yield render
    finally:
        renderer.close()


def qpos_from_observations(env: Any, observations: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
    """MuJoCo positions from the observations of an environment.

    Gymnasium's locomotion tasks observe positions, then velocities, without the horizontal position of the root. That
    is integrated here from its velocity.

    Args:
        env: is reset here, to find the content of its observations.
        observations: (H, observation_dim), of successive steps.
        start: (nq,) positions at the first of them, for the coordinates that are not observed; None is the origin.

    Returns:
        (H, nq) positions.

    Raises:
        RenderingError: MuJoCo does not simulate the environment, or its observations are not positions and velocities.
    """
    simulator = _simulator(env)
    observation, _ = env.reset(seed=0)
    qpos, qvel = simulator.data.qpos, simulator.data.qvel
    for hidden in range(3):  # coordinates of the root that are not observed
        expected = np.concatenate([qpos[hidden:], qvel])
        if len(observation) >= len(expected) and np.allclose(observation[: len(expected)], expected):
            break
    else:
        raise RenderingError(f"the observations of {_name(env)} do not begin with MuJoCo's positions and velocities")
    observed = len(qpos) - hidden
    velocities = observations[:, observed : observed + hidden]
    moved = seconds_per_step(env) * (velocities[1:] + velocities[:-1]) / 2
    first = np.zeros((1, hidden)) if start is None else start[None, :hidden]
    return np.concatenate([np.cumsum(np.concatenate([first, moved]), axis=0), observations[:, :observed]], axis=1)


def seconds_per_step(env: Any) -> float:
    """Simulated time between two observations."""
    return action_repeat(env) * (getattr(env.unwrapped, "dt", None) or 1 / env.metadata.get("render_fps", 30))


def _simulator(env: Any) -> Any:
    """The unwrapped environment, with MuJoCo's model and data."""
    mujoco: Any = import_module("mujoco")
    simulator: Any = env.unwrapped
    if not isinstance(getattr(simulator, "model", None), mujoco.MjModel):
        raise RenderingError(f"{_name(env)} is not simulated by MuJoCo")
    return simulator


def _name(env: Any) -> str:
    return env.spec.id if env.spec else str(env)


@contextmanager
def _driver_errors() -> Generator[None]:
    """Turn any failure of a graphics driver into a `RenderingError`: it must not cost the results."""
    try:
        yield
    except Exception as error:
        raise RenderingError(f"{OPENGL_HINT} ({first_line(error)[:120]})") from error
