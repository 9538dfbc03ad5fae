"""The commands of the installed package: `trajectory-train` is `python src/train.py`, and so on."""

from __future__ import annotations

from functools import partial

from trajectory.commands import start

train = partial(start, "train")
evaluate = partial(start, "evaluate")
analyze = partial(start, "analyze")
collect = partial(start, "collect")
report = partial(start, "report")
dashboard = partial(start, "dashboard")
benchmark = partial(start, "benchmark")
train_behaviour = partial(start, "train_behaviour")
export = partial(start, "export")
import_checkpoint = partial(start, "import_checkpoint")
