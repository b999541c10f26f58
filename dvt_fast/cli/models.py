"""The ViT and the denoiser that the options of a command mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import hub
from ..errors import InputError
from ..vit import MINI

if TYPE_CHECKING:
    from ..denoiser import Denoiser
    from ..vit import ViT

DenoiserFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help=f"A trained denoiser: a file, {hub.SCHEME}OWNER/REPO/path, or one that the authors of DVT published: "
        f"{' or '.join(hub.DENOISERS)}.",
        show_default=f"that of {MINI}",
    ),
]


def load_models(spec: str | None, asked: Mapping[str, Any], chosen: set[str]) -> tuple[ViT, Denoiser]:
    """The ViT and the denoiser for its features.

    spec: of the denoiser, see `load_denoiser`. asked: keyword arguments of `ViT`; those in `chosen` the user has given,
    and for the others the ViT is the one that the denoiser was trained for.
    """
    from ..denoiser.checkpoint import load_denoiser
    from ..vit import ViT

    vit = ViT(**_vit_options(asked, chosen, _trained_for(spec, asked["name"])))
    return vit, load_denoiser(spec, vit)


def _trained_for(spec: str | None, vit: str) -> Mapping[str, Any]:
    """What `ViT.describe` said of the ViT that a denoiser was trained for; empty where its file does not say."""
    from ..denoiser import Denoiser
    from ..denoiser.checkpoint import ASSETS, local

    if spec in (*hub.DENOISERS, *hub.DISTILLED) or (spec is None and vit != MINI):
        return {}  # which file that is, or that there is none, the ViT says
    path = ASSETS / f"{MINI}_denoiser.safetensors" if spec is None else local(spec)
    return Denoiser.from_checkpoint(path).meta.get("vit") or {}


def _vit_options(asked: Mapping[str, Any], chosen: set[str], trained: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `ViT`: what was `chosen` of those `asked` for, and else what the denoiser was trained
    for; all that was asked for where that is another ViT, or unknown."""
    if not trained or ("name" in chosen and asked["name"] != trained["name"]):
        return dict(asked)
    known = {key: trained[key] for key in ("name", "size", "stride", "layer", "mean", "std")}
    known |= {"norm": trained["norm"] != "none", "device": asked["device"]}
    weights = trained["weights"]
    if weights.startswith("random, seed "):
        known |= {"weights": "random", "seed": int(weights.removeprefix("random, seed "))}
    elif weights.startswith(hub.SCHEME):
        known["weights"] = weights
    elif weights != "pretrained" and "weights" not in chosen:
        raise InputError(
            f"the denoiser was trained for {trained['name']} with the weights {weights!r}: give that file by --weights"
        )
    return known | {name: asked[name] for name in chosen}
