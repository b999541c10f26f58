"""The results of a stream in the Rerun viewer, or in a file for it."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import numpy as np

from .errors import InputError, OutputError
from .extras import require
from .files import Unfinished
from .stream.result import Result
from .video.colors import StableColors

PATIENCE = 30.0  # seconds that a viewer or a disk may take for what it was sent
VIEWER = "rerun+http://127.0.0.1:9876/proxy"  # where one that runs listens
NAMES = {"frame": "Frame", "raw_pca": "Raw", "pca": "Denoised"}


class RerunSink:
    """Logs results to Rerun. Needs rerun-sdk, the extra [rerun].

    target: the name of a file that ends in .rrd, which appears whole when the sink is closed; "spawn" for a viewer that
    opens now; "connect" for one that runs, or its address (rerun+http://HOST:9876/proxy).

    Logged are "frame" (as JPEG), "pca" and, where results have the ViT's own features, "raw_pca" (a pixel a patch), the
    scalars "timing/age_ms", "timing/latency_ms" and "drops_before", on the timelines "frame" (its number) and "stamp":
    the source's times exactly where it tells them, those of a video from its start, else those of the capture by the
    clock of the system.

    Raises `OutputError` where the file cannot be written, and where no viewer takes what is sent.
    """

    def __init__(self, target: str | os.PathLike[str]):
        self._rerun = require("rerun", "rerun")
        self._target = os.fspath(target)
        self._colors = StableColors()
        self._shown: tuple[str, ...] = ()
        self._ended = False
        self._file: _PipedFile | None = None
        self._recording = self._rerun.RecordingStream("dvt-fast")
        if self._target == "spawn":
            self._spawn()
        elif self._target == "connect" or "://" in self._target:
            self._connect(VIEWER if self._target == "connect" else self._target)
        elif Path(self._target).suffix == ".rrd":
            self._file = _PipedFile(Path(self._target).expanduser())
            self._recording.save(self._file.entrance)
            self._file.start()
        else:
            raise InputError(f"{self._target}: expected a file that ends in .rrd, spawn, connect or a viewer's address")

    def write(self, result: Result) -> None:
        if self._ended:
            raise InputError(f"{self._target}: is closed")
        if self._file is not None and self._file.error is not None:
            self._give_up(self._file.error)
        seen = ({} if result.raw is None else {"raw_pca": result.raw}) | {"pca": result.features}
        basis = self._colors.update(*seen.values())
        pictures = {"frame": self._rerun.Image(result.image).compress(jpeg_quality=90)}
        pictures |= {name: self._rerun.Image(basis.colors(tokens)) for name, tokens in seen.items()}
        self._arrange(tuple(pictures))
        self._recording.set_time("frame", sequence=result.id)
        self._recording.set_time("stamp", **_time(result))
        for name, picture in pictures.items():
            self._recording.log(name, picture)
        numbers = {
            "timing/age_ms": 1e3 * result.age,
            "timing/latency_ms": 1e3 * result.latency,
            "drops_before": result.drops_before,
        }
        for name, number in numbers.items():
            self._recording.log(name, self._rerun.Scalars(number))

    def close(self) -> None:
        if self._ended:
            return
        try:
            self._recording.flush(timeout_sec=PATIENCE)
        except RuntimeError as error:
            self._give_up(error)
        self._ended = True
        self._recording.disconnect()
        if self._file is not None:
            self._file.finish(keep=bool(self._shown))

    def _connect(self, address: str) -> None:
        """Rerun itself would wait for a viewer to come, in the background."""
        try:
            parts = urlsplit(address)
            socket.create_connection((parts.hostname or "", parts.port or 9876), timeout=3).close()
            self._recording.connect_grpc(address)
            self._recording.flush(timeout_sec=PATIENCE)
        except (OSError, ValueError, RuntimeError) as error:
            self._give_up(error)

    def _spawn(self) -> None:
        """The viewer is installed beside the interpreter, which need not be in PATH."""
        if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            self._give_up(RuntimeError("there is no display to open one on"))
        before = os.environ.get("PATH", "")
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), before])
        try:
            self._recording.spawn()
            self._recording.flush(timeout_sec=PATIENCE)
        except RuntimeError as error:
            self._give_up(error)
        finally:
            os.environ["PATH"] = before

    def _give_up(self, error: Exception) -> NoReturn:
        self._ended = True
        self._recording.disconnect()
        if self._file is not None:
            raise self._file.failed(error)
        reason = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
        raise OutputError(f"Rerun viewer ({self._target}): {reason}; a file that ends in .rrd needs no viewer")

    def _arrange(self, shown: tuple[str, ...]) -> None:
        """Tell the viewer to show the pictures side by side, and the times below."""
        if shown == self._shown:
            return
        self._shown = shown
        layout = require("rerun.blueprint", "rerun")
        pictures = [layout.Spatial2DView(origin=name, name=NAMES[name]) for name in shown]
        times = layout.TimeSeriesView(origin="timing", name="Milliseconds")
        page = layout.Vertical(layout.Horizontal(*pictures), times, row_shares=[3, 1])
        self._recording.send_blueprint(layout.Blueprint(page, collapse_panels=True))


class _PipedFile:
    """A file that Rerun writes through a pipe: its own files do not tell of a full disk, and are then never done."""

    def __init__(self, path: Path):
        self._unfinished = Unfinished(path)
        self._exit, self._own_entrance = os.pipe()
        self.entrance = f"/dev/fd/{self._own_entrance}"
        self.error: OSError | None = None
        self._thread = threading.Thread(target=self._copy, name="dvt-rerun", daemon=True)

    def start(self) -> None:
        """Once Rerun has opened the entrance."""
        os.close(self._own_entrance)
        self._thread.start()

    def finish(self, keep: bool) -> None:
        """Once Rerun has closed the entrance."""
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self.error = TimeoutError("the disk does not take it")
        if self.error is not None:
            raise self.failed(self.error)
        if keep:
            self._unfinished.finish()
        else:
            self._unfinished.discard()

    def failed(self, error: Exception) -> OutputError:
        return self._unfinished.failed(error)

    def _copy(self) -> None:
        """The pipe is emptied whatever happens to the file: Rerun waits for it."""
        with open(self._exit, "rb", buffering=0) as pipe:
            try:
                with open(self._unfinished.inside, "wb") as file:
                    while part := pipe.read(1 << 20):
                        file.write(part)
            except OSError as error:
                self.error = error
            while pipe.read(1 << 20):
                pass


def _time(result: Result) -> dict[str, Any]:
    if "stamp_ns" in result.meta:
        return {"timestamp": np.datetime64(result.meta["stamp_ns"], "ns")}
    if result.stamp is not None:
        return {"duration": result.stamp}
    return {"timestamp": time.time() - (time.monotonic() - result.captured)}
