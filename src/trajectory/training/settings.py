"""How long and on what a model is trained."""

from __future__ import annotations

from dataclasses import dataclass

from trajectory.errors import require


@dataclass(frozen=True)
class TrainerSettings:
    """How long and on what a model is trained; `conf/trainer/default.yaml` explains the keys."""

    max_steps: int = 195_312
    batch_size: int = 256
    gradient_clip: float = 1.0
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "single"
    precision: str = "auto"
    compile: bool | None = None
    threads: str = "auto"
    checkpoint_every_n_steps: int = 5_000
    log_every_n_steps: int = 50
    skip_nonfinite: bool = False

    def __post_init__(self) -> None:
        steps = ("max_steps", "checkpoint_every_n_steps", "log_every_n_steps")
        for key in (*steps, "batch_size", "devices", "num_nodes"):
            require(getattr(self, key) >= 1, f"trainer.{key}", "at least 1", getattr(self, key))
        strategies = ("single", "ddp", "fsdp")
        require(self.strategy in strategies, "trainer.strategy", f"one of {', '.join(strategies)}", self.strategy)
        for key in ("devices", "num_nodes"):
            alone = getattr(self, key) == 1 or self.strategy != "single"
            require(alone, f"trainer.{key}", "1 without trainer=ddp or trainer=fsdp", getattr(self, key))
        several = self.strategy == "single" or self.processes > 1
        require(several, "trainer.devices", f"at least 2 with trainer={self.strategy} on one machine", self.devices)
        rule = f"a multiple of the {self.processes} processes, which share every batch"
        require(self.batch_size % self.processes == 0, "trainer.batch_size", rule, self.batch_size)
        require(self.gradient_clip > 0, "trainer.gradient_clip", "above 0", self.gradient_clip)
        require(self.accelerator in ("auto", "cpu", "gpu"), "trainer.accelerator", "auto, cpu or gpu", self.accelerator)
        precisions = ("auto", "32-true", "bf16-mixed", "16-mixed")
        require(self.precision in precisions, "trainer.precision", f"one of {', '.join(precisions)}", self.precision)
        scaled = self.strategy == "fsdp" and self.precision == "16-mixed"  # its gradient scaler knows no shards
        require(not scaled, "trainer.precision", "auto, 32-true or bf16-mixed with trainer=fsdp", self.precision)
        threads = self.threads
        require(
            threads == "auto" or (threads.isdecimal() and int(threads) >= 1),
            "trainer.threads",
            "auto or a whole number of at least 1",
            threads,
        )

    @property
    def processes(self) -> int:
        """Of all machines together."""
        return self.devices * self.num_nodes
