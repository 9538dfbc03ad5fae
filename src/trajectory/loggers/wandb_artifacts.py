"""Lineage as artifacts of Weights & Biases, online and offline: the data of a training, the checkpoint of an
evaluation.

Offline, `wandb.Run.use_artifact` raises. What it does online with a new artifact also works offline: the artifact is
logged as used by the run. W&B identifies an artifact by its content, so all runs with the same data or checkpoint show
the same version.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from trajectory.files import write_file
from trajectory.resume import LAST_CHECKPOINT


def run_name(folder: Path) -> str:
    """The last two parts of a run's folder: environment and time, or sweep and number."""
    return "/".join(folder.resolve().parts[-2:])[-128:]


def log_lineage(run: Any, folder: Path, dataset: dict[str, Any] | None, checkpoint: Path | None) -> None:
    """Log the dataset as used. Log the checkpoint as output if it is in the run's `folder`, else as used.

    Args:
        dataset: its summary, the metadata of the artifact. The artifact itself holds only its id and content hash.
        checkpoint: logged by its path, without a copy. An output is logged together with `best.ckpt` next to it.
    """
    import wandb

    identity = {}
    if dataset and "content_hash" in dataset:
        identity = {key: dataset[key] for key in ("id", "content_hash")}
        path = folder / "wandb" / "dataset.json"
        write_file(path, json.dumps(identity))
        data = wandb.Artifact(_artifact_name(dataset["id"]), type="dataset", metadata=dataset)
        data.add_file(str(path), policy="immutable", skip_cache=True)
        _use(run, data)
    if checkpoint is None or not checkpoint.is_file():
        return
    is_output = checkpoint.resolve().parent == folder.resolve()
    best = checkpoint.with_name("best.ckpt")
    for path in [best, checkpoint] if is_output and best.is_file() else [checkpoint]:
        name = _artifact_name(f"checkpoint-{run_name(path.parent)}")
        model = wandb.Artifact(name, type="model", metadata={"dataset": identity})
        model.add_file(str(path.resolve()), policy="immutable", skip_cache=True)
        if is_output:
            run.log_artifact(model, aliases=["best" if path == best else Path(LAST_CHECKPOINT).stem])
        else:
            _use(run, model)


def _use(run: Any, artifact: Any) -> None:
    run._log_artifact(artifact, use_after_commit=True)


def _artifact_name(name: str) -> str:
    return re.sub(r"[^\w.-]", "-", name, flags=re.ASCII)[-128:]
