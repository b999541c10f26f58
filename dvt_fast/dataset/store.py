"""Where a dataset lies: a local folder, or a prefix of any storage that fsspec knows (s3://, gs://, memory://).

A file appears whole or not at all: in a folder through a temporary file, fsync and a rename, in an object store as one
put. What fails for a moment is tried again, ever later; what fails for good is one line with the URL and the reason,
an `OutputError` for a write and an `InputError` for a read.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from ..errors import DvtError, InputError, MissingExtraError, OutputError
from ..extras import require
from ..files import write_whole

T = TypeVar("T")

RETRIES = 5  # with the first wait: 0.5 + 1 + 2 + 4 + 8 seconds, and what the storage's own client tries
FIRST_WAIT = 0.5

# System errors after which the same call may succeed: the network's, and a storage that is too busy.
_PASSING = {
    errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.EPIPE,
    errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN,
    errno.ENETUNREACH, errno.ENETRESET,
}  # fmt: skip
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)


class Unreachable(InputError):
    """A read that failed for the storage's sake, after every retry: the next file would fare no better."""


class Absent(InputError):
    """A read of a file that is not there."""


class Store:
    """Files by name under one URL.

    url: a folder (or file://folder), or a URL of fsspec; its credentials and endpoint come from the environment and
    from fsspec's configuration. retries: how often a passing failure is tried again, after waits that double.

    Can be pickled and used after a fork. Raises `MissingExtraError` where fsspec, or what it needs for this kind of
    URL, is not installed.
    """

    def __init__(self, url: str | os.PathLike[str], retries: int = RETRIES):
        text = os.fspath(url)
        if not text or "\0" in text:
            raise InputError(f"a folder or URL was expected, got {text!r}")
        text = text.removeprefix("file://")
        self.folder = None if "://" in text else Path(os.path.abspath(os.path.expanduser(text)))
        self.url = str(self.folder) if self.folder else text.rstrip("/")
        self.retries = retries
        self._system: Any = None
        self._owner = 0  # the process that `_system` works in: fsspec's clients do not survive a fork
        if not self.folder:
            self._remote()  # what is not installed is said now

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.url, self.retries)

    def locate(self, name: str) -> str:
        """The path or URL of a file."""
        return f"{self.url}/{name}" if name else self.url

    def read(self, name: str) -> bytes:
        """The content of a file. Raises `InputError`, and `Unreachable` where the storage itself fails."""
        try:
            if self.folder:
                return self._insist((self.folder / name).read_bytes)
            system, root = self._remote()
            return self._insist(lambda: system.cat_file(f"{root}/{name}"))
        except FileNotFoundError:
            raise Absent(f"{self.locate(name)}: no such file") from None
        except Exception as error:
            raise self._read_error(name, error) from None

    def read_or_none(self, name: str) -> bytes | None:
        """The content of a file, or None where there is none."""
        try:
            return self.read(name)
        except Absent:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all. Raises `OutputError`."""
        try:
            if self.folder:
                path = self.folder / name
                self._insist(lambda: path.parent.mkdir(parents=True, exist_ok=True))
                self._insist(lambda: write_whole(path, data))
            else:
                system, root = self._remote()
                self._insist(lambda: system.pipe_file(f"{root}/{name}", data))
        except DvtError:
            raise
        except Exception as error:
            failure = OutputError(f"{self.locate(name)}: cannot be written: {_reason(error)}")
            failure.errno = error.errno if isinstance(error, OSError) else None
            raise failure from None

    def list(self, prefix: str = "") -> dict[str, int]:
        """The size of every file whose path begins with the folder `prefix`; empty where there is no such folder."""
        try:
            return self._insist(lambda: dict(self._sizes(prefix)))
        except FileNotFoundError:
            return {}
        except Exception as error:
            raise self._read_error(prefix, error) from None

    def describe(self, pattern: str) -> dict[str, dict[str, Any]]:
        """What fsspec knows of each file that fits a pattern, or else is at or below the URL (a file itself is "").

        For URLs only. Raises `InputError` where there is nothing.
        """

        def look() -> dict[str, dict[str, Any]]:
            system, root = self._remote()
            system.invalidate_cache()
            if pattern:
                found = system.glob(f"{root}/{pattern}", detail=True)
            else:
                info = system.info(root)
                found = {root: info} if info["type"] == "file" else system.find(root, detail=True)
            return {path[len(root) :].lstrip("/"): info for path, info in found.items() if info["type"] == "file"}

        try:
            return self._insist(look)
        except FileNotFoundError:
            raise InputError(f"{self.locate(pattern)}: no such file or folder") from None
        except Exception as error:
            raise self._read_error(pattern, error) from None

    def remove(self, name: str) -> None:
        """Remove a file; no error where there is none. Raises `OutputError`."""
        try:
            if self.folder:
                self._insist(lambda: (self.folder / name).unlink(missing_ok=True))  # type: ignore[operator]
            else:
                system, root = self._remote()
                self._insist(lambda: system.rm_file(f"{root}/{name}"))
        except FileNotFoundError:
            pass
        except Exception as error:
            raise OutputError(f"{self.locate(name)}: cannot be removed: {_reason(error)}") from None

    def sweep(self, prefix: str) -> None:
        """Remove what killed writers left, at the top and under `prefix`. Only where no one else writes: see `lock`."""
        if self.folder and self.folder.is_dir():
            for name in [*os.listdir(self.folder), *self.list(prefix)]:
                if is_temporary(name):
                    self.remove(name)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other runs from writing to this folder meanwhile; `OutputError` where one does. The lock ends with its
        process, however that ends. An object store has no locks: there two runs at once do some images twice, and the
        last manifest stays, without the rows that only the other had. Machines of two kinds may differ in the last bits
        of a pair: its row is then of one and its file of the other, which `check_dataset` reports as damaged."""
        if not self.folder:
            yield
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        except (FileExistsError, NotADirectoryError):
            raise OutputError(f"{self.url}: is a file, expected a folder to write to") from None
        except OSError as error:
            raise OutputError(f"{self.url}: cannot be written to: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise OutputError(f"{self.url}: another run is writing to it: wait for that one, or end it") from None
        except OSError:
            pass  # a file system without locks: as in an object store
        try:
            yield
        finally:
            os.close(descriptor)

    def _sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        if self.folder:
            for parent, _, names in os.walk(self.folder / prefix, onerror=_raise):
                for name in names:
                    path = os.path.join(parent, name)
                    with suppress(FileNotFoundError):  # gone since
                        yield os.path.relpath(path, self.folder), os.stat(path).st_size
            return
        system, root = self._remote()
        system.invalidate_cache()
        top = f"{root}/{prefix}".rstrip("/")
        for path, info in system.find(top, detail=True).items():
            yield path[len(root) :].lstrip("/"), int(info["size"])

    def _insist(self, action: Callable[[], T]) -> T:
        """Call `action`, again after a passing failure."""
        for attempt in range(self.retries):
            try:
                return action()
            except Exception as error:
                if not is_passing(error):
                    raise
            # between half and all of it, so that many workers do not come back at once
            time.sleep(FIRST_WAIT * 2**attempt * random.uniform(0.5, 1))
        return action()

    def _read_error(self, name: str, error: Exception) -> InputError:
        kind = Unreachable if is_passing(error) else InputError
        return kind(f"{self.locate(name)}: cannot be read: {_reason(error)}")

    def _remote(self) -> tuple[Any, str]:
        """fsspec's file system, and the path of this store in it."""
        if self._system is None or self._owner != os.getpid():
            self._system, self._owner = file_system(self.url), os.getpid()
        return self._system


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it; `MissingExtraError` or `InputError` where there is none."""
    fsspec = require("fsspec", "train")
    # s3fs would ask for the size before every read, to read large files in parts
    options = {"max_concurrency": 1} if url.partition("://")[0] in ("s3", "s3a") else {}
    try:
        system, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:  # fsspec is there, and not what it needs for this kind of URL
        raise MissingExtraError(f"{url}: {_reason(error)} (pip install 'dvt-fast[train]' for s3://)") from None
    except Exception as error:
        raise InputError(f"{url}: not a URL that can be used: {_reason(error)}") from None
    return system, path.rstrip("/")


def is_temporary(name: str) -> bool:
    """Whether this is what a killed writer left of a file (see `files.write_whole`)."""
    base = name.rpartition("/")[2]
    return base.startswith(".dvt-") and base.endswith(".tmp")


def is_passing(error: BaseException) -> bool:
    """Whether the same call may succeed later: the network, a busy server; not "absent", "forbidden" or a full disk."""
    if isinstance(error, (*_FINAL, ImportError, ValueError, TypeError, AttributeError, MemoryError)):
        return False
    if isinstance(error, (TimeoutError, ConnectionError, asyncio.TimeoutError)):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _PASSING
    status = getattr(error, "status", getattr(error, "code", None))  # of HTTP, in aiohttp and gcsfs
    with suppress(TypeError, ValueError):
        return int(status) in (408, 429) or int(status) >= 500  # type: ignore[arg-type]
    # What is left are errors of the storages' own clients: of the network, or of the set-up.
    return not isinstance(error, DvtError) and "Credentials" not in type(error).__name__


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(str(text).split()) or type(error).__name__


def _raise(error: OSError) -> None:
    raise error
