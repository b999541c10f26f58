"""Files of the Hugging Face hub by name: from its cache where they are there, else from the network where that is.

A name is "hf://OWNER/REPOSITORY/path/of/the/file", with @REVISION after the repository for a tag, branch or commit.
"""

from __future__ import annotations

from pathlib import Path

from .errors import WeightsError
from .extras import require
from .vit_weights import one_line

SCHEME = "hf://"
# Where the authors of DVT publish: a folder a way of training, and in it a file a ViT, by its name in timm.
PUBLISHED = "jjiaweiyang/DVT"
DENOISERS = ("voc_denoised", "imgnet_denoised")
DISTILLED = ("voc_distilled", "imgnet_distilled")


def published(folder: str, vit: str) -> str:
    """The name of the published file in `folder` for the timm model `vit`, with or without a tag."""
    cfg = require("timm", "vit").get_pretrained_cfg(vit)
    if cfg is None:
        raise WeightsError(f"there is no {folder} for {vit!r}: the published ones are for ViTs of timm")
    return f"{SCHEME}{PUBLISHED}/{folder}/{cfg.architecture}.{cfg.tag}.pth"


def fetch(name: str, otherwise: str) -> Path:
    """The local path of the file that `name`, "hf://...", says; `otherwise`: what else to do, for the error."""
    owner, _, rest = name.removeprefix(SCHEME).partition("/")
    repo, _, file = rest.partition("/")
    repo, _, revision = repo.partition("@")
    if not (owner and repo and file):
        raise WeightsError(f"expected {SCHEME}OWNER/REPOSITORY/path/of/the/file, got {name!r}")
    return download(f"{owner}/{repo}", file, revision or None, otherwise=otherwise)


def download(repo: str, file: str, revision: str | None = None, *, otherwise: str) -> Path:
    """The local path of a file of a repository. Raises `WeightsError`, one line with its name."""
    hub = require("huggingface_hub", "vit")
    name = f"{SCHEME}{repo}{'@' + revision if revision else ''}/{file}"
    try:
        path = cached(repo, file, revision)
        if path is None:
            need_network(name, otherwise)
            path = hub.hf_hub_download(repo, file, revision=revision)
        return Path(path)
    except WeightsError:
        raise
    except Exception as error:  # the name, the hub and the disk fail in many ways
        raise WeightsError(f"could not get {name} ({one_line(error)}): {otherwise}") from None


def cached(repo: str, file: str, revision: str | None = None) -> str | None:
    """The path of a file that is in the hub's cache."""
    found = require("huggingface_hub", "vit").try_to_load_from_cache(repo, file, revision=revision)
    return found if isinstance(found, str) else None


def need_network(what: str, otherwise: str) -> None:
    """`WeightsError` at once where the hub cannot be reached: its own client retries for most of a minute."""
    constants = require("huggingface_hub", "vit").constants
    if constants.HF_HUB_OFFLINE:
        raise WeightsError(f"HF_HUB_OFFLINE is set, and {what} is not in the cache: {otherwise}")
    if not _reachable(constants.ENDPOINT):
        raise WeightsError(f"no network: {constants.ENDPOINT} cannot be reached for {what}: {otherwise}")


def _reachable(endpoint: str) -> bool:
    import socket  # these three take longer to import than the rest of this file
    import urllib.parse
    import urllib.request

    if urllib.request.getproxies():
        return True  # a proxy may know a way that we cannot test
    url = urllib.parse.urlsplit(endpoint)
    try:
        socket.create_connection((url.hostname or "", url.port or (80 if url.scheme == "http" else 443)), 5).close()
        return True
    except OSError:
        return False
