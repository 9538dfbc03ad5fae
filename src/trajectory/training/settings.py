"""How long and on what a model is trained."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from trajectory.errors import require

TRAINER = "pytorch_lightning.Trainer"
FIXED_FLAGS = {  # flags of the Trainer that this project decides, and by what a user does
    "max_epochs": (-1, "trainer.max_steps says how long a training is"),
    "enable_checkpointing": (False, "callbacks.last_checkpoint writes the checkpoints"),
    "use_distributed_sampler": (False, "the data are dealt out to the processes here"),
    "overfit_batches": (0.0, "trainer.limit_train_batches says how many batches an epoch has"),
}
VALIDATION_FLAGS = ("val_check_interval", "check_val_every_n_epoch", "limit_val_batches")  # nothing reads them without
STRATEGIES = ("auto", "ddp", "fsdp")
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")


@dataclass(frozen=True)
class TrainerSettings:
    """The flags of Lightning's `Trainer`, under its names and with its defaults but for the first ones.

    What this project reads itself is checked here, the rest by Lightning. `conf/trainer/default.yaml` explains the
    keys. `logger`, `callbacks`, `plugins` and `default_root_dir` come from the run.
    """

    max_steps: int = 195_312
    gradient_clip_val: float | None = 1.0
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "auto"
    log_every_n_steps: int = 50
    accumulate_grad_batches: int = 1
    max_time: Any = None
    num_sanity_val_steps: int = 0
    max_epochs: Any = -1
    enable_checkpointing: Any = False
    use_distributed_sampler: Any = False
    overfit_batches: Any = 0.0
    enable_progress_bar: bool = False
    enable_model_summary: bool = False
    fast_dev_run: Any = False
    min_epochs: Any = None
    min_steps: Any = None
    limit_train_batches: Any = None
    limit_val_batches: Any = None
    limit_test_batches: Any = None
    limit_predict_batches: Any = None
    val_check_interval: Any = None
    check_val_every_n_epoch: Any = 1
    gradient_clip_algorithm: Any = None
    deterministic: Any = None
    benchmark: Any = None
    inference_mode: bool = True
    profiler: Any = None
    detect_anomaly: bool = False
    sync_batchnorm: bool = False
    reload_dataloaders_every_n_epochs: int = 0
    enable_autolog_hparams: bool = True
    model_registry: Any = None

    def __post_init__(self) -> None:
        for key, (value, why) in FIXED_FLAGS.items():
            given = getattr(self, key)
            same = given == value and isinstance(given, bool) == isinstance(value, bool)
            require(same, f"trainer.{key}", f"{str(value).lower()}: {why}", given)
        for key in ("max_steps", "log_every_n_steps", "devices", "num_nodes", "accumulate_grad_batches"):
            require(getattr(self, key) >= 1, f"trainer.{key}", "at least 1", getattr(self, key))
        require(self.strategy in STRATEGIES, "trainer.strategy", f"one of {', '.join(STRATEGIES)}", self.strategy)
        for key in ("devices", "num_nodes"):
            alone = getattr(self, key) == 1 or self.strategy != "auto"
            require(alone, f"trainer.{key}", "1 without trainer=ddp or trainer=fsdp", getattr(self, key))
        several = self.strategy == "auto" or self.processes > 1
        require(several, "trainer.devices", f"at least 2 with trainer={self.strategy} on one machine", self.devices)
        named = self.profiler is None or isinstance(self.profiler, str)
        require(named, "trainer.profiler", "null or a name, such as simple", self.profiler)
        clip = self.gradient_clip_val
        require(clip is None or clip > 0, "trainer.gradient_clip_val", "null or above 0", clip)
        check_accelerator(self.accelerator, "trainer.accelerator")
        require(self.precision in PRECISIONS, "trainer.precision", f"one of {', '.join(PRECISIONS)}", self.precision)
        scaled = self.strategy == "fsdp" and self.precision == "16-mixed"  # its gradient scaler knows no shards
        require(not scaled, "trainer.precision", "auto, 32-true or bf16-mixed with trainer=fsdp", self.precision)

    @property
    def processes(self) -> int:
        """Of all machines together."""
        return self.devices * self.num_nodes

    @property
    def flags(self) -> dict[str, Any]:
        """As keyword arguments of the `Trainer`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def has_unchecked_flags(self) -> bool:
        """Whether a flag that only Lightning can check, other than those of validation, differs from its default."""
        checked = (*FIXED_FLAGS, *VALIDATION_FLAGS)
        unchecked = [field for field in fields(self) if field.type == "Any" and field.name not in checked]
        return any(getattr(self, field.name) != field.default for field in unchecked)


@dataclass(frozen=True)
class RuntimeSettings:
    """What this machine does with a training: CPU threads, and whether the model is compiled (None: on GPUs)."""

    threads: str = "auto"
    compile: bool | None = None

    def __post_init__(self) -> None:
        check_threads(self.threads)


@dataclass(frozen=True)
class DeviceSettings:
    """Where a checkpoint is evaluated or analysed."""

    accelerator: str = "auto"
    threads: str = "auto"

    def __post_init__(self) -> None:
        check_accelerator(self.accelerator, "runtime.accelerator")
        check_threads(self.threads)


def check_accelerator(accelerator: str, key: str) -> None:
    """Raise a `UserError` for one that nothing here is made for."""
    require(accelerator in ("auto", "cpu", "gpu"), key, "auto, cpu or gpu", accelerator)


def check_threads(threads: str) -> None:
    """Raise a `UserError` unless it is a number, as text, or `auto`. The machine's own limit is `check_cores`'."""
    whole = threads == "auto" or (threads.isascii() and threads.isdecimal() and len(threads) < 5 and int(threads) >= 1)
    require(whole, "runtime.threads", "auto or a whole number from 1 to 9999", threads)


@dataclass(frozen=True)
class GuardSettings:
    """Of `callbacks.guard`: go on after steps whose gradients are not finite, and count them."""

    skip: bool = False


@dataclass(frozen=True)
class LastCheckpointSettings:
    """Of `callbacks.last_checkpoint`: training steps between two of them."""

    every_n_steps: int = 5_000

    def __post_init__(self) -> None:
        require(self.every_n_steps >= 1, "callbacks.last_checkpoint.every_n_steps", "at least 1", self.every_n_steps)


@dataclass(frozen=True)
class ThreadChoiceSettings:
    """Of `callbacks.threads`: steps between the beginnings of two trials, with runtime.threads=auto on a CPU."""

    every_n_steps: int = 500

    def __post_init__(self) -> None:
        require(self.every_n_steps >= 1, "callbacks.threads.every_n_steps", "at least 1", self.every_n_steps)


@dataclass(frozen=True)
class NoSettings:
    """Of a callback of ours without any of its own."""


# our callbacks, in the order that Lightning calls them; those of users come before the last checkpoint, which holds
# all that was done until then
CALLBACKS: dict[str, tuple[str, type]] = {
    "guard": ("trajectory.model.callbacks.finite_gradients.FiniteGradients", GuardSettings),
    "critic": ("trajectory.critic.callback.CriticTraining", NoSettings),
    "throughput": ("trajectory.model.throughput.Throughput", NoSettings),
    "progress": ("trajectory.model.callbacks.progress.TrainingProgress", NoSettings),
    "metrics": ("trajectory.model.callbacks.metrics.TrainingMetrics", NoSettings),
    "planning": ("trajectory.evaluation.callback.PlanningEvaluation", NoSettings),
    "threads": ("trajectory.model.callbacks.threads.ThreadChoice", ThreadChoiceSettings),
    "last_checkpoint": ("trajectory.model.callbacks.last_checkpoint.LastCheckpoint", LastCheckpointSettings),
}
REQUIRED_CALLBACKS = ("guard", "planning", "last_checkpoint")  # which the results speak of
