"""The command `dvt-fast`. One file a command; `app.py` puts them together.

Importing this package needs neither typer nor rich, so that a bare install can say in one line what is missing.
"""

from __future__ import annotations

import sys

from ..errors import DvtError


def main() -> None:
    """Run the command line and exit: 0, 1 for an error (one line on stderr), 2 for wrong usage, 130 for Ctrl-C."""
    try:
        from ..extras import require

        require("typer", "cli")
        require("rich", "cli")
        from .app import app

        app()
    except DvtError as error:
        if "--debug" in sys.argv:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
