"""`dvt-fast doctor`: what is installed, what computes here, what is missing and how to get it."""

from __future__ import annotations

import json
import os
import platform
from typing import Annotated, Any

import typer

from .. import __version__
from ..machine import package_version, processor
from ..runtime import backends, get_num_threads

# What each optional package is for, and the extra that brings it.
PACKAGES = {
    "numpy": ("the base", ""),
    "safetensors": ("the base", ""),
    "typer": ("this command line", "cli"),
    "rich": ("this command line", "cli"),
    "pillow": ("reading images, drawing panels", "cli"),
    "torch": ("running a ViT", "vit"),
    "timm": ("running a ViT", "vit"),
    "huggingface_hub": ("weights from the hub", "vit"),
    "torchvision": ("measuring detection", "eval"),
    "pycocotools": ("measuring detection", "eval"),
    "scipy": ("measuring object discovery", "eval"),
    "starlette": ("the page of `look`", "look"),
    "uvicorn": ("the page of `look`", "look"),
    "ray": ("data sets on a cluster", "train"),
    "pyarrow": ("the manifest of a data set", "train"),
    "fsspec": ("reading and writing data sets", "train"),
    "s3fs": ("data sets in a bucket", "train"),
    "lightning-fabric": ("training", "train"),
    "tensorboard": ("curves and pictures of training", "train"),
}


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show versions, backends, instruction sets and threads, and what is missing.

    The exit code is 1 where the package cannot compute at all, and 0 otherwise, missing extras included.
    """
    report = examine()
    typer.echo(json.dumps(report, indent=2) if as_json else _text(report))
    if not any(backend["available"] for backend in report["backends"]):
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """Everything that the command shows, as plain JSON types."""
    packages = {name: package_version(name) for name in PACKAGES}
    found = backends()
    usable = any(backend.available for backend in found)
    # Not having a GPU is no fault, and what it would take is said beside the backend.
    problems = [f"{backend.name}: {backend.reason}" for backend in found if backend.name == "cpu" and backend.reason]
    missing: dict[str, list[str]] = {}
    for name, (_, extra) in PACKAGES.items():
        if packages[name] is None:
            missing.setdefault(extra, []).append(name)
    for extra, names in missing.items():
        uses = ", ".join(dict.fromkeys(PACKAGES[name][0] for name in names))
        problems.append(f"{', '.join(names)} (for {uses}): pip install 'dvt-fast{f'[{extra}]' if extra else ''}'")
    return {
        "dvt_fast": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": "{}, {} cores".format(*processor()),
        "packages": packages,
        "backends": [backend.as_dict() for backend in found],
        "threads": get_num_threads() if usable else None,
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith("DVT_FAST_")},
        "missing": problems,
    }


def _text(report: dict[str, Any]) -> str:
    """The report for people."""
    rows = [
        ("dvt_fast", f"{report['dvt_fast']}, Python {report['python']}, {report['platform']}"),
        ("processor", report["processor"]),
    ]
    for backend in report["backends"]:
        state = f"available, instruction set {backend['active']}" if backend["active"] else "available"
        rows.append((backend["name"], state if backend["available"] else f"not available: {backend['reason']}"))
        rows += [("", line) for line in backend["devices"]]
        rows += [("", f"{name}: {value}") for name, value in backend["versions"].items() if value]
        for name, problem in backend["instruction_sets"].items():
            rows.append(("", f"{name}: {problem or ('in use' if name == backend['active'] else 'runs here')}"))
    rows.append(("threads", str(report["threads"] or "-")))
    rows += [(name, found or "missing") for name, found in report["packages"].items()]
    rows += [(name, value) for name, value in report["environment"].items()]
    width = max(len(name) for name, _ in rows) + 2
    lines = [f"{name:<{width}}{value}" for name, value in rows]
    if report["missing"]:
        lines += ["", "Missing:", *(f"  {line}" for line in report["missing"])]
    else:
        lines += ["", "No package is missing."]
    return "\n".join(lines)
