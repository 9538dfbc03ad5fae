"""Published Minari datasets: from the local store, else downloaded and verified."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import minari

from trajectory.data.store import check_id, dataset_lock, in_store, read_episodes, store_path, temporary_store
from trajectory.environments.make import check_layout, make_environment
from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import UserError, first_line

HUB = "https://huggingface.co"  # of Minari's published datasets, unless HF_ENDPOINT is set
CONNECT_TIMEOUT = 5.0  # seconds


def ensure_published(dataset_id: str, environment: EnvironmentSettings) -> None:
    """Download a dataset into the local store unless it is there.

    A download is verified before it enters the store: not empty, the dimensions of the environment, finite numbers.

    Raises:
        UserError: the dataset is neither in the store nor on the hub, or does not fit the environment.
    """
    check_id(dataset_id)
    if in_store(dataset_id):
        return
    _check_network(dataset_id)
    with dataset_lock(dataset_id):
        if not in_store(dataset_id):
            _download(dataset_id, environment)


def _download(dataset_id: str, environment: EnvironmentSettings) -> None:
    source_name = f"dataset.id={dataset_id!r}"
    with temporary_store(dataset_id):
        try:
            minari.download_dataset(dataset_id)
        except Exception as error:  # Minari, the hub's client and its transport raise errors of many types
            raise UserError(
                f"{source_name} must be in the local Minari store or published: {first_line(error)}"
            ) from error
        env = make_environment(environment) if environment.has_simulator else None
        for episodes in read_episodes(dataset_id, environment.observation_keys):
            if env is not None:
                check_layout(env, episodes.layout, source_name)
        if env is not None:
            env.close()


def _check_network(dataset_id: str) -> None:
    """Raise a `UserError` at once if the hub cannot be reached; its client would retry for long."""
    hub = urlsplit(os.environ.get("HF_ENDPOINT") or HUB)
    problem = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else None
    proxied = {hub.scheme, "all"} & getproxies().keys() and not proxy_bypass(hub.hostname or "")
    if problem is None and not proxied:
        port = hub.port or (80 if hub.scheme == "http" else 443)
        try:
            socket.create_connection((hub.hostname or "", port), timeout=CONNECT_TIMEOUT).close()
        except OSError as error:
            problem = f"{hub.hostname}:{port} cannot be reached ({error})"
    if problem:
        raise UserError(
            f"dataset.id={dataset_id!r} must be in the local Minari store {store_path()} or on the network, and "
            f"{problem}: fetch it where there is a network with `minari download {dataset_id}` and copy its folder, or "
            f"record a built-in one with `python src/collect.py env=hopper`"
        )
