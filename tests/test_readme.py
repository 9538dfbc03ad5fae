"""What the README shows must work as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from command_line import CONF, ROOT, compose_config
from trajectory.data.store import load_episodes

README = (ROOT / "README.md").read_text().replace("\\\n", " ")  # commands of several lines
COMMAND = re.compile(r"python src/(\w+)\.py((?: +[^`\s#]+)*)")


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_example_of_own_data_gives_a_dataset(store: Path) -> None:
    (block,) = [block for block in python_blocks() if "create_dataset(" in block]
    exec(compile(block, "README.md", "exec"), {})
    episodes = load_episodes("me/pendulum/random-v0")
    assert len(episodes) == 10
    assert episodes.lengths.tolist() == [200] * 10
    assert not episodes.terminated.any()


@pytest.mark.parametrize(("main", "arguments"), sorted(set(COMMAND.findall(README))))
def test_every_command_composes(main: str, arguments: str) -> None:
    """Hydra refuses a key or an option that is not there; `-m` sweeps over comma-separated values."""
    assert (CONF / f"{main}.yaml").exists()
    overrides = [argument.split(",")[0] if "[" not in argument else argument for argument in arguments.split()]
    compose_config(main, *(override for override in overrides if override != "-m"))
