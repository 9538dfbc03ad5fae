"""Which data a model was trained on, and which model was evaluated: artifacts of Weights & Biases, offline too.

Offline `wandb.Run.use_artifact` refuses to work. What it does online with a new artifact works offline as well: the
artifact is logged with the note that the run used it. W&B knows an artifact by its content, so that all runs that use
the same data or the same checkpoint are shown with one and the same version.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from trajectory.files import write_file
from trajectory.resume import LAST_CHECKPOINT


def run_name(folder: Path) -> str:
    """The last two folders of a run: environment and time, or sweep and number."""
    return "/".join(folder.resolve().parts[-2:])[-128:]


def log_lineage(run: Any, folder: Path, dataset: dict[str, Any] | None, checkpoint: Path | None) -> None:
    """Note the dataset as used, and the checkpoint: as made by the run where it lies in its `folder`, else as used.

    Args:
        dataset: its facts. The artifact holds its name and content hash alone; the facts are its metadata.
        checkpoint: goes by its path; nothing is copied. `best.ckpt` beside one that the run made goes with it.
    """
    import wandb

    facts = {}
    if dataset and "content_hash" in dataset:
        facts = {key: dataset[key] for key in ("id", "content_hash")}
        path = folder / "wandb" / "dataset.json"
        write_file(path, json.dumps(facts))
        data = wandb.Artifact(_artifact_name(dataset["id"]), type="dataset", metadata=dataset)
        data.add_file(str(path), policy="immutable", skip_cache=True)
        _use(run, data)
    if checkpoint is None or not checkpoint.is_file():
        return
    made = checkpoint.resolve().parent == folder.resolve()
    best = checkpoint.with_name("best.ckpt")
    for path in [best, checkpoint] if made and best.is_file() else [checkpoint]:
        name = _artifact_name(f"checkpoint-{run_name(path.parent)}")
        model = wandb.Artifact(name, type="model", metadata={"dataset": facts})
        model.add_file(str(path.resolve()), policy="immutable", skip_cache=True)
        if made:
            run.log_artifact(model, aliases=["best" if path == best else Path(LAST_CHECKPOINT).stem])
        else:
            _use(run, model)


def _use(run: Any, artifact: Any) -> None:
    run._log_artifact(artifact, use_after_commit=True)


def _artifact_name(name: str) -> str:
    return re.sub(r"[^\w.-]", "-", name, flags=re.ASCII)[-128:]
