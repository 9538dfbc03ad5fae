"""Where a dataset comes from: one function from the `dataset` config to an id in the local Minari store."""

from __future__ import annotations

from typing import Any

from trajectory.data.builtin import ensure_builtin
from trajectory.errors import require


def locate(dataset: dict[str, Any], environment: dict[str, Any]) -> str:
    """The id of the dataset that a config asks for, recorded first where it is a built-in one not yet in the store.

    Args:
        dataset: `source` ("builtin" or "minari") and that source's own keys, as in `conf/dataset/`.
        environment: `name`, `id`, `kwargs` and `reference` returns.

    Raises:
        UserError: an unknown source, or what the source itself refuses.
    """
    source = dataset["source"]
    require(source in ("builtin", "minari"), "dataset.source", "builtin or minari", source)
    if source == "minari":
        require(isinstance(dataset.get("id"), str), "dataset.id", "given with dataset=minari", dataset.get("id"))
        return dataset["id"]
    # the shipped policies know the environment as it is registered
    require(not environment["kwargs"], "env.kwargs", "empty with dataset=builtin", environment["kwargs"])
    return ensure_builtin(
        environment["name"],
        environment["id"],
        dataset["quality"],
        steps=dataset["steps"],
        seed=dataset["seed"],
        reference=environment["reference"],
    )
