"""Which images a dataset is made of: files, folders and patterns, here or under any URL that fsspec knows."""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..images import IMAGE_EXTENSIONS, find_images, load_image
from .store import Store

if TYPE_CHECKING:
    from PIL import Image as PILImage


@dataclass(frozen=True, slots=True)
class Source:
    """One image to be done.

    folder: the folder (absolute) or URL that was given, or the one around a file that was given. image: its path in
    there. bytes, stamp: its size, and when it was written (nanoseconds) or what the storage calls its version; where
    both are as they were, so is the content.
    """

    folder: str
    image: str
    bytes: int
    stamp: str

    @property
    def place(self) -> str:
        """Its path or URL."""
        return f"{self.folder}/{self.image}" if self.folder != "/" else f"/{self.image}"


def find_sources(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Source]:
    """Expand files, folders (recursively), patterns and URLs: in the order given, sorted within each, none twice.

    Raises `InputError` for what does not exist or cannot be listed, and where no image is found.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    names = [os.fspath(path).removeprefix("file://") for path in paths]
    found: dict[str, Source] = {}
    for remote, group in groupby(names, lambda name: "://" in name):
        for source in (s for name in group for s in _under_url(name)) if remote else _local(list(group)):
            found.setdefault(source.place, source)
    if not found:
        raise InputError(f"no images found in {', '.join(names) or 'an empty list of paths'}")
    return list(found.values())


def decode_image(data: bytes, name: str) -> PILImage.Image:
    """The image in the bytes of a file, as `load_image` gives it; name: of the file, for messages."""
    if not data:
        raise InputError(f"{name}: the file is empty (0 bytes)")
    return load_image(_Named(data, name))


class _Named(io.BytesIO):
    """A file in memory that knows its name, for messages."""

    def __init__(self, data: bytes, name: str):
        super().__init__(data)
        self.name = name


def _local(names: list[str]) -> Iterator[Source]:
    bases = [_base(name) for name in names]
    roots = dict.fromkeys(base for base in bases if os.path.isdir(base))
    for path in find_images(names):
        place = os.path.abspath(path)
        folder = next((root for root in roots if place.startswith(root.rstrip("/") + "/")), os.path.dirname(place))
        try:
            status = os.stat(place)
            size, stamp = status.st_size, str(status.st_mtime_ns)
        except OSError:  # gone, or out of reach: the one who reads it says so
            size, stamp = -1, ""
        yield Source(folder, os.path.relpath(place, folder), size, stamp)


def _base(name: str) -> str:
    """The folder that a name is, or the part of a pattern before what varies."""
    path = os.path.expanduser(name)
    if glob.has_magic(path) and not os.path.exists(path):
        path = _fixed_part(path) or ("/" if path.startswith("/") else ".")
    return os.path.abspath(path)


def _fixed_part(pattern: str) -> str:
    parts = pattern.split("/")
    return "/".join(parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])


def _under_url(url: str) -> Iterator[Source]:
    url = url.rstrip("/")
    pattern = glob.has_magic(url) and not url.startswith("http")  # there "?" begins a query
    store = Store(_fixed_part(url) if pattern else url)
    for name, info in sorted(store.describe(url[len(store.url) + 1 :]).items()):
        size, stamp = int(info["size"] or 0), _stamp(info)
        path = PurePosixPath(name)
        if not name:  # the URL of one file, taken whatever its name
            folder, _, image = url.rpartition("/")
            yield Source(folder, image, size, stamp)
        elif path.suffix.lower() in IMAGE_EXTENSIONS and not path.name.startswith("."):
            yield Source(store.url, name, size, stamp)


def _stamp(info: dict[str, Any]) -> str:
    """What changes with the content of an object, as its storage has it."""
    for key in ("ETag", "etag", "md5Hash", "generation", "LastModified", "last_modified", "mtime", "created"):
        if info.get(key) is not None:
            return str(info[key]).strip('"')
    return ""
