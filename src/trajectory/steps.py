"""Optimiser steps. Lightning takes one for every `accumulate_grad_batches` batches."""

from __future__ import annotations

from typing import Any


def ends_step(trainer: Any, batch_idx: int) -> bool:
    """Whether an optimiser step follows this batch of the epoch; the epoch's last step may have fewer batches."""
    batches_per_step = trainer.accumulate_grad_batches
    return (batch_idx + 1) % batches_per_step == 0 or batch_idx + 1 >= trainer.num_training_batches


def batches_of_step(trainer: Any, step: int) -> range:
    """The batches, numbered within their epoch, that a step was taken on.

    Args:
        step: counted from the start of training.
    """
    batches_per_step, batches_per_epoch = trainer.accumulate_grad_batches, int(trainer.num_training_batches)
    steps_per_epoch = -(-batches_per_epoch // batches_per_step)
    first = step % steps_per_epoch * batches_per_step
    return range(first, min(first + batches_per_step, batches_per_epoch))
