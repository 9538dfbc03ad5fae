"""The MP4 of an episode, drawn in a fresh process as in the mains: which GL is used is decided on MuJoCo's import."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import imageio.v3 as iio
import numpy as np
import pytest

from toy_world import TOY
from trajectory.evaluation.video import choose_gl, write_video

SIZE, FPS, STATES = 96, 30, 21
DRAW = f"""
import sys
from pathlib import Path
from trajectory.evaluation.video import choose_gl, write_video
choose_gl()
import gymnasium, numpy as np
env = gymnasium.make("Hopper-v5")
env.reset(seed=0)
states = []
for _ in range({STATES}):
    states.append(env.unwrapped.data.qpos.copy())
    env.step(np.ones(3, np.float32))
print(write_video(Path(sys.argv[1]), env, states, size={SIZE}, fps={FPS}, progress=False))
"""
offscreen_gl = pytest.mark.skipif(
    not any(map(ctypes.util.find_library, ("EGL", "OSMesa"))), reason="no offscreen OpenGL library on this machine"
)


def draw(path: Path, **variables: str) -> str:
    """What a process that draws `path` prints last: None or the line that says why there is no video."""
    source = Path(sys.modules[write_video.__module__].__file__ or "").parents[2]
    kept = {name: value for name, value in os.environ.items() if name != "MUJOCO_GL"}
    environment = {**kept, "PYTHONPATH": str(source), **variables}
    done = subprocess.run(
        [sys.executable, "-c", DRAW, str(path)], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@offscreen_gl
def test_an_episode_becomes_an_mp4_in_real_time(tmp_path: Path) -> None:
    path = tmp_path / "episode.mp4"
    assert draw(path) == "None"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    frames = np.stack(list(iio.imiter(path, plugin="FFMPEG")))
    assert iio.immeta(path, plugin="FFMPEG")["fps"] == FPS
    # a Hopper step takes 8 ms, so every fourth state is a frame
    assert frames.shape == (-(-STATES // 4), SIZE, SIZE, 3)
    assert all(frame.std() > 10 for frame in frames)
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 50


def test_without_gl_there_is_one_line_that_names_the_packages(tmp_path: Path) -> None:
    line = draw(tmp_path / "episode.mp4", MUJOCO_GL="disable")
    assert line.startswith("no video: ")
    assert "libegl1" in line
    assert "libosmesa6" in line
    assert "\n" not in line
    assert list(tmp_path.iterdir()) == []


def test_other_simulators_get_one_line(tmp_path: Path) -> None:
    env = gymnasium.make(TOY)
    states = [np.zeros(0)] * 3
    assert write_video(tmp_path / "episode.mp4", env, states) == f"no video: {TOY} is not simulated by MuJoCo"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has a choice of offscreen libraries")
def test_an_offscreen_library_is_chosen_unless_one_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    choose_gl()
    assert os.environ["MUJOCO_GL"] == "glfw"
    monkeypatch.delenv("MUJOCO_GL")
    choose_gl()
    found = [name for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")) if ctypes.util.find_library(library)]
    assert os.environ["MUJOCO_GL"] == [*found, "disable"][0]
