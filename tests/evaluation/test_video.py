"""An episode beside its plans, drawn in a fresh process as in the mains: MuJoCo's import decides which GL is used."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import imageio.v3 as iio
import matplotlib.image
import numpy as np
import pytest

from helpers import draw_an_episode
from helpers.draw_an_episode import SIZE, STEPS
from helpers.forked import Forked
from helpers.toy_world import TOY_ENVIRONMENT
from trajectory.environments.make import choose_gl
from trajectory.evaluation.episodes import Recording
from trajectory.evaluation.picture import COLUMNS, received_returns, strips
from trajectory.evaluation.video import CAPTION_HEIGHT, draw_episode, planned_states
from trajectory.planning.trajectory import PlannedTrajectory

offscreen_gl = pytest.mark.skipif(
    not any(map(ctypes.util.find_library, ("EGL", "OSMesa"))), reason="no offscreen OpenGL library on this machine"
)


def draw(folder: Path, foresees: str = "", environment: str = "Hopper-v5", **variables: str) -> str:
    """What a process that draws an episode logs: nothing, or the line that says what is not drawn."""
    kept = {name: value for name, value in os.environ.items() if name != "MUJOCO_GL"} | variables
    arguments = [draw_an_episode.__file__, environment, foresees, str(folder)]
    if sys.platform == "linux" and not variables:
        with Forked(arguments, folder, kept) as process:
            _, stderr = process.communicate()
            assert process.wait() == 0, stderr
        return stderr.strip()
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=kept, cwd=folder, capture_output=True, text=True, check=True).stderr.strip()


def frames(folder: Path) -> np.ndarray:
    """(F, height, width, 3) of the video, without the line of text above."""
    return np.stack(list(iio.imiter(folder / "episode.mp4", plugin="FFMPEG")))[:, CAPTION_HEIGHT:].astype(int)


@offscreen_gl
def test_an_episode_becomes_an_mp4_in_real_time(tmp_path: Path) -> None:
    assert draw(tmp_path) == ""
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["episode.mp4", "rollout.png"]
    drawn = frames(tmp_path)
    assert iio.immeta(tmp_path / "episode.mp4", plugin="FFMPEG")["fps"] == pytest.approx(1 / (4 * 0.008), rel=0.01)
    # a Hopper step takes 8 ms, so every fourth state is a frame
    assert drawn.shape == (-(-STEPS // 4), SIZE, SIZE, 3)
    assert all(frame.std() > 10 for frame in drawn)
    assert np.abs(drawn[0] - drawn[-1]).max() > 50


@offscreen_gl
@pytest.mark.parametrize("foresees", ["true", pytest.param("still", marks=pytest.mark.slow)])
def test_what_is_foreseen_stands_beside_what_is_executed(tmp_path: Path, foresees: str) -> None:
    assert draw(tmp_path, foresees) == ""
    executed, foreseen = np.split(frames(tmp_path), 2, axis=2)
    assert executed.shape == foreseen.shape == (-(-STEPS // 4), SIZE, SIZE, 3)
    differences = np.abs(executed - foreseen).mean(axis=(1, 2, 3))
    # but for the video's compression; frames are of steps 0, 4, 8, ...
    if foresees == "true":
        assert differences.max() < 4
    else:  # the last two are four and two steps into their plans, while Hopper moves fast
        assert differences[0] < 4
        assert differences[-2:].min() > 8
    picture = matplotlib.image.imread(tmp_path / "rollout.png")
    assert picture.shape[0] > 4 * 200  # four rows of frames above the panels
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 1_000


@offscreen_gl
def test_where_observations_tell_no_positions_the_episode_is_drawn_alone(tmp_path: Path) -> None:
    line = draw(tmp_path, "still", "Reacher-v5")
    assert line == (
        "plans are not drawn: the observations of Reacher-v5 do not begin with MuJoCo's positions and velocities"
    )
    assert frames(tmp_path).shape[2] == SIZE
    assert (tmp_path / "rollout.png").is_file()


def test_plans_of_one_step_have_no_states_to_show() -> None:
    numbers = np.ones(1)
    plan = PlannedTrajectory(np.ones((1, 11)), np.ones((1, 3)), numbers, numbers, False, 0.0, 0.0)
    recording = Recording(states=[np.zeros(6)] * 3, rewards=[1.0, 2.0], plans={0: plan, 1: plan})
    env = gymnasium.make("Hopper-v5")
    assert planned_states(env, recording) == {}
    env.close()


def test_without_gl_there_is_one_line_that_names_the_packages(tmp_path: Path) -> None:
    line = draw(tmp_path, "still", MUJOCO_GL="disable")
    assert line.startswith("no video: ")
    assert "libegl1" in line
    assert "libosmesa6" in line
    assert "\n" not in line
    assert [entry.name for entry in tmp_path.iterdir()] == ["rollout.png"]


def test_what_was_refused_is_not_asked_for_again(tmp_path: Path) -> None:
    """A window without a display: MuJoCo would end the process at the second attempt."""
    (tmp_path / "second").mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DISPLAY", "WAYLAND"))}
    command = [sys.executable, draw_an_episode.__file__, "Hopper-v5", "", str(tmp_path), str(tmp_path / "second")]
    options: dict[str, Any] = {"env": kept | {"MUJOCO_GL": "glfw"}, "cwd": tmp_path}
    done = subprocess.run(command, **options, capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("no video: ")]
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert (tmp_path / "second" / "rollout.png").is_file()


def test_of_other_simulators_there_are_numbers_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recording = Recording(states=[np.zeros(0)] * 3, rewards=[1.0, 2.0, 3.0])
    draw_episode(tmp_path, TOY_ENVIRONMENT, recording, terminated=True)
    assert [record.message for record in caplog.records] == ["no video: ToyWorld-v0 is not simulated by MuJoCo"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["rollout.png"]


def test_the_picture_shows_whole_plans_beside_the_same_steps() -> None:
    states = [np.array([float(step)]) for step in range(50)]
    numbers = np.ones(10)
    plan = PlannedTrajectory(np.ones((10, 1)), np.ones((10, 1)), numbers, numbers, False, 0.0, 0.0)
    moments = range(0, 50, 9)
    recording = Recording(states=states, rewards=[0.0] * 50, plans=dict.fromkeys(moments, plan))
    foreseen = {made: 100.0 + np.arange(made, made + 10)[:, None] for made in moments}
    rows = strips(recording, foreseen)
    assert len(rows) == 4
    for (_, _, executed), (_, _, planned) in zip(rows[::2], rows[1::2], strict=True):
        assert len(executed) == len(planned) == COLUMNS
        assert [state + 100 for _, state in executed] == [state for _, state in planned]
        assert executed[-1][1] - executed[0][1] == 9
    assert rows[0][2][0][1] != rows[2][2][0][1]
    [(_, _, alone)] = strips(recording, {})
    assert [state.item() for _, state in alone] == [0, 10, 20, 29, 39, 49]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has a choice of offscreen libraries")
def test_an_offscreen_library_is_chosen_unless_one_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    choose_gl()
    assert os.environ["MUJOCO_GL"] == "glfw"
    monkeypatch.delenv("MUJOCO_GL")
    choose_gl()
    found = [name for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")) if ctypes.util.find_library(library)]
    assert os.environ["MUJOCO_GL"] == [*found, "disable"][0]


def test_a_fall_costs_what_training_made_of_it() -> None:
    """What plans promise is in the same terms as what is received."""
    recording = Recording(rewards=[2.0] * 300, discount=0.99, terminal_reward=-100.0)
    returns = received_returns(recording, terminated=True)
    for step in (0, 280, 299):
        slow = sum(0.99**ahead * 2 for ahead in range(299 - step)) - 100 * 0.99 ** (299 - step)
        assert returns[step] == pytest.approx(slow)
    # at a time limit what comes is as good as what came
    np.testing.assert_allclose(received_returns(recording, terminated=False), 200.0)
    recording.terminal_reward = None
    assert received_returns(recording, terminated=True)[-1] == 2.0
