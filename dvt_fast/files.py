"""Files that appear whole or not at all, and safetensors files that say what they are."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError, NonFiniteError, OutputError


def write_whole(path: str | os.PathLike[str], data: bytes | bytearray | memoryview) -> None:
    """Write `data` to `path` so that, whatever happens, the file there is the old one (or none) or all of the new one.

    The bytes go to a hidden file in the same folder, are flushed to the disk, and take the name in one step; a full
    disk, Ctrl-C or an error leaves nothing behind. Raises `OutputError`, one line with the path and the reason.
    """
    write_together({path: data})


def write_together(files: Mapping[str | os.PathLike[str], bytes | bytearray | memoryview]) -> None:
    """`write_whole` for files that belong together: none takes its name before all of them are on the disk."""
    written: dict[Path, Path] = {}  # what each file will be called -> what it is called now
    path = Path()
    try:
        try:
            for name, data in files.items():
                path = Path(name)
                if path.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                temporary = _temporary_in(path.parent)
                written[path] = temporary
                with open(temporary, "xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            for path, temporary in written.items():
                os.replace(temporary, path)
        except BaseException:
            for temporary in written.values():
                with suppress(OSError):
                    temporary.unlink()
            raise
    except OSError as error:
        raise _output_error(path, "cannot be written", error) from None
    for folder in {path.parent for path in written}:
        _sync_folder(folder)


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """Make `folder` where it is missing and check that files can be written in it; `OutputError` where they cannot."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = _temporary_in(folder)
        probe.touch(exist_ok=False)
        probe.unlink()
    except FileExistsError:
        raise OutputError(f"{folder}: is a file, expected a folder to write to") from None
    except OSError as error:
        raise _output_error(folder, "cannot be written to", error) from None
    return folder


class Unfinished:
    """A file or folder that is written over time, by whatever library, and takes its name when it is whole.

    path: the name. inside: where to write until then, of the same name, in a hidden folder beside it. Then `finish` or
    `discard`; a killed process leaves the hidden folder behind. Raises `OutputError` where nothing can be written.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._folder = _temporary_in(check_folder(self.path.parent))
        self.inside = self._folder / self.path.name
        try:
            self._folder.mkdir()
        except OSError as error:
            raise _output_error(self.path, "cannot be written", error) from None

    def finish(self, content: Path | None = None) -> None:
        """Flush what was written to the disk and give it its name, in place of a file of that name. content: where
        it is, if not at `inside`."""
        content = content or self.inside
        try:
            for path in [content, *content.rglob("*")]:
                _sync(path)
            os.replace(content, self.path)
        except OSError as error:
            raise self.failed(error) from None
        self.discard()
        _sync_folder(self.path.parent)

    def discard(self) -> None:
        """Remove what was written and has no name yet. May be called twice."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def failed(self, error: Exception) -> OutputError:
        """`discard`, and the error to raise for what went wrong while writing."""
        self.discard()
        return _output_error(self.path, "cannot be written", error)


def pack_safetensors(arrays: Mapping[str, np.ndarray], format: str, version: int, **header: Any) -> bytes:
    """The bytes of one of our files: the arrays, and the header fields (JSON types) in its metadata.

    Raises `NonFiniteError` rather than keep NaN or infinity.
    """
    from safetensors.numpy import save

    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise NonFiniteError(f"{name} holds NaN or infinity: not saved")
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save(contiguous, metadata={"dvt_fast": json.dumps({"format": format, "version": version, **header})})


def read_safetensors(path: Path, format: str, version: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the arrays of one of our files: JSON text under "dvt_fast" in the metadata of a safetensors file.

    Raises `InputError`, one line with the path: absent, not safetensors, cut, of another format or version.
    """
    from safetensors import safe_open

    if not path.is_file():
        raise InputError(f"{path}: {'a folder, expected a file' if path.is_dir() else 'no such file'}")
    try:
        with safe_open(str(path), framework="np") as file:
            text = (file.metadata() or {}).get("dvt_fast", "null")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
    except Exception as error:  # a cut or foreign file fails in many ways
        raise InputError(f"{path}: not a readable safetensors file: {' '.join(str(error).split())}") from None
    return _our_header(text, str(path), format, version), arrays


def unpack_safetensors(
    data: bytes, name: str, format: str, version: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """`read_safetensors` for bytes at hand; name: of the file that they are from."""
    from safetensors.numpy import load

    try:
        arrays = load(data)  # refuses data that are longer or shorter than the header says
        text = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["dvt_fast"]
    except KeyError:
        text = "null"
    except Exception as error:  # a cut or foreign file fails in many ways
        raise InputError(f"{name}: not a readable safetensors file: {' '.join(str(error).split())}") from None
    return _our_header(text, name, format, version), arrays


def _our_header(text: str, name: str, format: str, version: int) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except json.JSONDecodeError:
        header = None
    if not isinstance(header, dict) or header.get("format") != format:
        raise InputError(f"{name}: not a {format} file, as its metadata does not say so")
    if header.get("version") != version:
        raise InputError(f"{name}: {format} version {header.get('version')}, expected version {version}")
    return header


def _output_error(path: Path, what: str, error: Exception) -> OutputError:
    """One line for people, with the system's error number, where there is one, for programs."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    failure = OutputError(f"{path}: {what}: {reason}")
    failure.errno = getattr(error, "errno", None)
    return failure


def _temporary_in(folder: Path) -> Path:
    return folder / f".dvt-{secrets.token_hex(8)}.tmp"


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut; not every file system can, and the file is whole without it."""
    with suppress(OSError):
        _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
