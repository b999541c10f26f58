"""Optional packages: imported when used, and asked for in one line when they are absent."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import MissingExtraError


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or raise `MissingExtraError` with the command that installs `extra`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] != module.split(".")[0]:
            raise  # the package is there and something inside it is broken: hiding that would mislead
        raise MissingExtraError(
            f"this needs the package '{module.split('.')[0]}', which is not installed: pip install 'dvt-fast[{extra}]'"
        ) from None
