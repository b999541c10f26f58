"""The pictures of results as numbered PNG files."""

from __future__ import annotations

import io
import os
from pathlib import Path

from ..errors import InputError
from ..extras import require
from ..files import check_folder, write_whole
from ..stream.result import Result
from .picture import Painter


class PictureSink:
    """Writes each result's picture (see `Painter`) to a PNG file, whole or not at all. Needs Pillow ([cli]).

    pattern: the path, in which %d, or %06d with leading zeros, stands for the frame's id.
    """

    def __init__(self, pattern: str | os.PathLike[str], height: int = 360):
        self.pattern = os.path.expanduser(os.fspath(pattern))
        if not is_pattern(self.pattern):
            raise InputError(f"{self.pattern}: expected a name with %d or %06d for the frame's number, ending in .png")
        self._pil = require("PIL.Image", "cli")
        self._painter = Painter(height)
        check_folder(Path(self.pattern).parent)

    def write(self, result: Result) -> None:
        data = io.BytesIO()
        self._pil.fromarray(self._painter.draw(result)).save(data, "PNG")
        write_whole(self.pattern % result.id, data.getvalue())

    def close(self) -> None:
        pass  # every file is whole already


def is_pattern(name: str) -> bool:
    """Whether a name is a pattern of PNG files."""
    try:
        folder, file = os.path.split(name % 1)
    except (TypeError, ValueError):
        return False
    return file.lower().endswith(".png") and folder == os.path.dirname(name)
