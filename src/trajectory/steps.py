"""Optimiser steps. Lightning takes one for every `accumulate_grad_batches` batches."""

from __future__ import annotations

from typing import Any


def ends_step(trainer: Any, batch_idx: int) -> bool:
    """Whether this batch of an epoch completes a step; the last step of an epoch may have fewer batches."""
    batches = trainer.accumulate_grad_batches
    return (batch_idx + 1) % batches == 0 or batch_idx + 1 >= trainer.num_training_batches


def batches_of_step(trainer: Any, step: int) -> range:
    """The batches of its epoch that a step was taken on.

    Args:
        step: counted from the start of training.
    """
    batches, in_epoch = trainer.accumulate_grad_batches, int(trainer.num_training_batches)
    first = step % -(-in_epoch // batches) * batches
    return range(first, min(first + batches, in_epoch))
