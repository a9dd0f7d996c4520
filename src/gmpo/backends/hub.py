"""Whether a model of the hub can be had, known in seconds: the library tries for a minute and blames something else."""

from __future__ import annotations

import os
import socket
import threading
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from huggingface_hub import constants, try_to_load_from_cache

from gmpo.errors import BackendError

PATIENCE_S = 3.0
"""Seconds that the hub has to take a connection."""
CACHE = constants.HF_HUB_CACHE


def require_hub(name: str) -> None:
    """Make sure that a model named `org/model` can be had: from the hub, or else from what was downloaded before.

    Where the hub does not answer and the model is in the library's cache, the library is told to look nowhere else.

    Raises:
        BackendError: it is in neither.
    """
    why = unreachable(constants.ENDPOINT)
    if why is None:
        return
    if isinstance(try_to_load_from_cache(name, "config.json", cache_dir=CACHE), str):
        constants.HF_HUB_OFFLINE = True
        return
    raise BackendError(
        f"model path {name!r}: there is no such folder in {os.getcwd()}, and as a name on the hub it cannot be had: "
        f"{why}, and no earlier download is in {CACHE}. Where there is a network, run "
        f"`hf download {name} --local-dir FOLDER`, bring the folder here, and give its path."
    )


@cache
def unreachable(endpoint: str) -> str | None:
    """Why the hub cannot be asked; None where it, or the proxy in front of it, takes a connection. Asked once."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    url, proxies = urlsplit(endpoint), getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(url.hostname or ""):
        url = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    host, port = url.hostname or "", url.port or (80 if url.scheme == "http" else 443)
    failure = [f"no answer within {PATIENCE_S:g} s"]

    def ask() -> None:
        try:
            socket.create_connection((host, port), timeout=PATIENCE_S).close()
            failure.clear()
        except OSError as error:
            failure[:] = [str(error)]

    # Looking a name up has no limit of its own.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE_S)
    return f"{host} is not reachable ({failure[0]})" if failure else None
