"""Where the C library is, for the builds of others: `cmake -Ddvt_fast_DIR=$(python -m dvt_fast --cmake-dir)`.

The command line is `dvt-fast`, or `python -m dvt_fast.cli`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import __version__


def main() -> int:
    package = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(prog="python -m dvt_fast", description="Where the C library of dvt_fast is.")
    parser.add_argument("--version", action="version", version=__version__)
    where = parser.add_mutually_exclusive_group(required=True)
    for option, folder, purpose in (
        ("--cmake-dir", "lib/cmake/dvt_fast", "for find_package(dvt_fast): -Ddvt_fast_DIR=..."),
        ("--pkg-config-dir", "lib/pkgconfig", "for pkg-config: PKG_CONFIG_PATH=..."),
        ("--include-dir", "include", "of dvt_fast.h and dvt_fast.hpp"),
    ):
        where.add_argument(option, dest="folder", action="store_const", const=package / folder, help=purpose)
    folder = parser.parse_args().folder
    if not folder.is_dir():
        print(f"error: this copy of dvt_fast was built without its C library: there is no {folder}", file=sys.stderr)
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
