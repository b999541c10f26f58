"""What is made of a ViT's features before a task sees them: nothing, a map taken off, stage 1, stage 2, a control."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..stage1 import SOLVERS, parse_options
from ..views import DEFAULT_PLAN, plan_boxes

# Each kind, and the settings it takes beside a name.
KINDS = {
    "raw": "the ViT's features as they are",
    "coordinates": "no feature at all: waves over the place of the patch, a control for data that reward the place",
    "map": "raw without a known artifact map (map: its file)",
    "average": "stage 1 by averaging shifted views",
    "direct": "stage 1 by least squares",
    "hashgrid": "stage 1 by the paper's recipe",
    "stage2": "one pass of a trained denoiser (denoiser: its file)",
}
PARTS = ("semantics", "artifacts", "residual", "raw - artifacts")


@dataclass(frozen=True)
class Variant:
    """One way to make features.

    name: what tables call it. kind: see `KINDS`. file: of kinds "map" and "stage2" (None: that which comes with the
    ViT). Of stage 1: views, its plan (see `views.plan_boxes`); seed; options, the solver's; part, one of `PARTS`.
    """

    name: str
    kind: str
    file: str | None = None
    views: Any = DEFAULT_PLAN
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    part: str = "semantics"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"variant {self.name}: unknown kind {self.kind!r}; expected one of {', '.join(KINDS)}")
        if self.kind == "map" and not self.file:
            raise InputError(f"variant {self.name}: needs the file of an artifact map, as in map:vit.safetensors")
        if self.file and self.kind not in ("map", "stage2"):
            raise InputError(f"variant {self.name}: {self.kind} takes no file, got {self.file}")
        if self.file and not self.file.startswith("hf://") and self.kind == "map" and not Path(self.file).is_file():
            raise InputError(f"variant {self.name}: {self.file}: no such file")
        if self.part not in PARTS:
            raise InputError(f"variant {self.name}: part must be one of {', '.join(PARTS)}, got {self.part!r}")
        if self.is_stage1:
            plan_boxes(self.views, self.seed)
            known = dict.fromkeys(["views", "seed", "part", *(f.name for f in fields(SOLVERS[self.kind]))])
            for name in self.options:
                if name not in known:
                    raise InputError(
                        f"variant {self.name}: unknown setting {name!r}; expected one of {', '.join(known)}"
                    )
            parse_options(self.kind, self.solver_options)
        elif self.options or (self.part, self.views, self.seed) != ("semantics", DEFAULT_PLAN, 0):
            raise InputError(f"variant {self.name}: {self.kind} takes no options of stage 1")

    @property
    def is_stage1(self) -> bool:
        return self.kind in SOLVERS

    @property
    def solver_options(self) -> dict[str, Any]:
        """The options with the seed, as `decompose` has them."""
        return dict(self.options) | ({"seed": self.seed} if self.kind == "hashgrid" else {})

    def as_dict(self) -> dict[str, Any]:
        """As JSON types: all that its features depend on beside the ViT and the image, and its name."""
        found: dict[str, Any] = {"name": self.name, "kind": self.kind}
        if self.file:
            found["file"] = Path(self.file).name
        if self.is_stage1:
            found |= {"views": self.views, "seed": self.seed, "options": dict(self.options), "part": self.part}
        return json.loads(json.dumps(found))

    @property
    def key(self) -> str:
        """16 hex digits for what its features depend on beside the ViT and the image, whatever its name."""
        found = self.as_dict()
        del found["name"]
        if self.file and Path(self.file).is_file():
            found["file"] = hashlib.sha256(Path(self.file).read_bytes()).hexdigest()
        elif self.kind == "stage2":
            found["file"] = self.file or _denoisers_that_come_with_the_package()
        known = found.get("options", {}).get("artifacts")
        if isinstance(known, str) and Path(known).is_file():  # the map that `direct` starts from
            found["options"]["artifacts"] = hashlib.sha256(Path(known).read_bytes()).hexdigest()
        return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def parse_variant(text: str) -> Variant:
    """A variant from one word: KIND, KIND:FILE or NAME=KIND[:FILE][,setting=value]...

    Settings are views, seed, part, and the options of the solver, their values JSON where they parse as such:
    "direct", "map:vit.safetensors", "mine=stage2:runs/best.safetensors", "few=direct,views=realtime,passes=1".
    """
    head, *settings = text.split(",")
    name, equals, rest = head.partition("=")
    if ":" in name:  # that "=" is in the path of the file
        name, equals, rest = "", "", head
    kind, colon, file = (rest if equals else head).partition(":")
    name = name if equals else (f"{kind} {Path(file).stem}" if kind == "stage2" and file else kind)
    found: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"variant {text!r}: expected setting=value, got {setting!r}")
        try:
            found[key.strip()] = json.loads(value)
        except json.JSONDecodeError:
            found[key.strip()] = value
    own = {key: found.pop(key) for key in ("views", "seed", "part") if key in found}
    return Variant(name, kind, file or None, options=found, **own)


def parse_variants(texts: Iterable[str]) -> list[Variant]:
    """`parse_variant` of each; `InputError` where two have one name."""
    found = [parse_variant(text) for text in texts]
    return check_names(found)


def check_names(variants: list[Variant]) -> list[Variant]:
    """`variants`, whose names must differ."""
    names = [variant.name for variant in variants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"two variants are called {', '.join(twice)}: name them, as in few=direct,views=realtime")
    if not variants:
        raise InputError("no variant to measure: give at least one, such as raw")
    return variants


def _denoisers_that_come_with_the_package() -> list[str]:
    """Their contents, so that features of older ones are not taken for those of newer ones."""
    folder = Path(__file__).parents[1] / "assets"
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*_denoiser*.safetensors"))]
