"""Keys and passwords in the environment are in no file of a run, a log or a sweep, and in nothing that is printed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from helpers.command_line import TINY, run_main, run_main_here
from trajectory.errors import UserError
from trajectory.sweeps.search import check_storage, without_password

SECRETS = {
    "WANDB_API_KEY": "5ecre7" * 6 + "abcd",  # of the form that Weights & Biases takes
    "HF_TOKEN": "hf_s3cretS3cretS3cretS3cret",
    "AWS_SECRET_ACCESS_KEY": "s3cretAws/Key",
}
QUICK = (*TINY, "trainer.max_steps=2", "evaluation.every_n_steps=2", "evaluation.video=false")


def holding(folder: Path, secrets: Iterable[str]) -> list[str]:
    """The files below a folder in which a secret is, or whose name has one."""
    found = []
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        found += [f"{path}: {secret}" for secret in secrets if secret.encode() in content or secret in path.name]
    return found


def test_keys_in_the_environment_are_in_no_file_of_a_run(tmp_path: Path) -> None:
    """With Weights & Biases offline, which keeps logs and metadata of its own."""
    process = run_main("train", *QUICK, "hydra.run.dir=run", folder=tmp_path, **SECRETS)
    assert process.returncode == 0, process.stderr
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert holding(tmp_path, SECRETS.values()) == []
    assert not [secret for secret in SECRETS.values() if secret in process.stdout + process.stderr]


def test_the_address_of_a_study_is_in_no_file_of_its_trials(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    url = f"sqlite:///{tmp_path}/s3cret.db"
    space = ("planner.horizon=choice(1,2)", "hydra.sweeper.n_trials=1", "hydra.sweep.dir=sweep", "logger=csv")
    storage = "hydra.sweeper.storage='${oc.env:STUDY_URL}'"
    process = run_main_here(
        "train", "-m", *QUICK, "hydra/sweeper=optuna", storage, *space, folder=tmp_path, STUDY_URL=url
    )
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "s3cret.db").is_file()
    kept = tmp_path / "sweep" / "optimization_results.yaml"  # without a password, of which a file's address has none
    assert [line.partition(": ")[0] for line in holding(tmp_path / "sweep", ["s3cret"])] == [str(kept)]


URL = "postgresql://me:s3cret@nowhere.invalid:5432/studies"


@pytest.mark.parametrize("given", [f"'{URL}'", "'${oc.env:STUDY_URL}'"])
def test_the_password_of_a_database_is_neither_printed_nor_kept(given: str, tmp_path: Path) -> None:
    options = ("hydra/sweeper=optuna", f"hydra.sweeper.storage={given}", "seed=choice(0,1)", "hydra.sweep.dir=sweep")
    process = run_main_here("train", "-m", *QUICK, *options, folder=tmp_path, STUDY_URL=URL)
    assert process.returncode == 1
    (line,) = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert "hydra.sweeper.storage must be " in line
    assert "postgresql://me:***@nowhere.invalid:5432/studies" in line
    assert "s3cret" not in process.stdout + process.stderr
    assert holding(tmp_path, ["s3cret"]) == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (URL, URL.replace("s3cret", "***")),
        ("mysql+pymysql://me:a:b@host/x", "mysql+pymysql://me:***@host/x"),
        ("postgresql://me@host/x", "postgresql://me@host/x"),
        ("outputs/study.log", "outputs/study.log"),
        ("postgresql://me:pw@[broken/x", "postgresql://***"),
    ],
)
def test_addresses_are_shown_without_their_password(url: str, shown: str) -> None:
    assert without_password(url) == shown
    assert (shown != url) == _is_refused(url)


def _is_refused(url: str) -> bool:
    try:
        check_storage(url, url)
    except UserError as error:
        return "s3cret" not in str(error)
    return False
