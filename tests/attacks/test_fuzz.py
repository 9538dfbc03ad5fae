"""Bad values in every key of every command: refused in one line that leaves nothing behind, or run to the end.

`make fuzz` tries 1,200 of them. FUZZ_COUNT and FUZZ_SEED choose others.
"""

from __future__ import annotations

import os
import sys
from itertools import product
from pathlib import Path

import pytest

from helpers.command_line import run_main
from helpers.fuzz import RUN, SETTINGS, VALUES, Attack, Variant, attacks, fault, settings_fault, variants

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="its limits are Linux's")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tiny training, beside whose folder lies the store that it recorded."""
    place = tmp_path_factory.mktemp("fuzz")
    process = run_main("train", *RUN, "runtime.threads=1", "hydra.run.dir=runs/tiny", folder=place)
    assert process.returncode == 0, process.stderr
    return place / "runs" / "tiny" / "last.ckpt"


def assert_withstood(checkpoint: Path, place: Path, seed: int, count: int) -> None:
    found, store = {}, checkpoint.parents[2] / "store"
    for number, attack in enumerate(attacks(checkpoint, seed, count)):
        folder = place / str(number)
        folder.mkdir()
        wrong = fault(attack, folder, store)
        if wrong is not None:
            found[str(attack)] = wrong
            if report := os.environ.get("FUZZ_REPORT"):
                with Path(report).open("a") as file:
                    file.write(f"{attack}\n    {wrong}\n")
    assert not found, "\n".join(f"{attack}\n    {wrong}" for attack, wrong in found.items())


@pytest.mark.parametrize(
    "share", [pytest.param(101, id="a hundredth"), pytest.param(5, id="a fifth", marks=pytest.mark.slow)]
)
def test_no_bad_value_of_any_key_gets_past_the_settings(share: int, tmp_path: Path) -> None:
    """A share of all keys and values of all commands, without a process each."""
    checkpoint = tmp_path / "runs" / "tiny" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    found, tried = [], 0
    for variant in [*variants(checkpoint), Variant("benchmark", ())]:
        if variant.command not in SETTINGS:
            continue
        config = variant.config()
        for number, (key, value) in enumerate(product(variant.attacked_keys(), VALUES)):
            if number % share == 0:
                attack, tried = Attack(variant, key, value), tried + 1
                wrong = settings_fault(attack, config)
                found += [f"{attack}\n    {wrong}"] if wrong else []
    assert tried > 8_000 / share
    assert not found, "\n".join(found)


def test_eight_bad_values_are_refused_in_one_line_or_run_to_the_end(checkpoint: Path, tmp_path: Path) -> None:
    assert_withstood(checkpoint, tmp_path, seed=0, count=8)


@pytest.mark.slow
def test_a_thousand_bad_values_are_refused_in_one_line_or_run_to_the_end(checkpoint: Path, tmp_path: Path) -> None:
    seed, count = int(os.environ.get("FUZZ_SEED", "1")), int(os.environ.get("FUZZ_COUNT", "1200"))
    assert_withstood(checkpoint, tmp_path, seed, count)
