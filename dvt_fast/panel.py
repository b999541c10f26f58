"""The pictures of a stage-1 decomposition and of a stage-2 result, made of the same rows.

Colours: three principal directions as red, green and blue, one basis and one range for all parts, so that raw is the
sum of the others also in colour. Token norms on one logarithmic scale, because an artifact may have 25 times the norm
of everything else. And what features are used for: clusters, and the similarity to one patch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from . import visual
from .arrays import to_numpy
from .errors import InputError
from .images import load_image
from .page import BAR, CAPTION, Page, number

if TYPE_CHECKING:
    from PIL import Image as PILImage

    from .decomposition import Decomposition
    from .stage2 import Denoised

    Parts = Mapping[str, np.ndarray]  # features [H, W, C] by the name that stands over their tiles

CLUSTERS = 6
QUERY_SCALE = 4
SIMILAR = 0.99  # the scale of similarities reaches at least down to this, or rounding would be drawn as contrast


def draw(d: Decomposition, image: Any = None, patch: tuple[int, int] | None = None) -> PILImage.Image:
    """The picture of `d`; see `Decomposition.panel`. Raises `InputError` for a patch outside the grid."""
    raw, semantics, artifacts, residual = (to_numpy(part) for part in (d.raw, d.semantics, d.artifacts, d.residual))
    h, w, _ = raw.shape
    patch = _checked(patch, semantics)
    picture = None if image is None else load_image(image)
    below = (CAPTION, CAPTION + BAR, BAR)
    page = Page(_aspect(picture, raw), 5, below, "Raw = semantics F + artifacts G + residual", about_stage1(d))

    # A constant may stand in F as well as in G. By convention G's robust mean over the patches is 0; drawn is the G
    # whose median is 0 channel by channel, so that its usual patch is grey.
    constant = np.median(artifacts, axis=(0, 1))
    basis = visual.ColorBasis.fit(raw, semantics + constant)
    if picture:
        page.tile(0, 0, "Input", picture)
    page.tile(0, 1, "Raw features", basis.colors(raw))
    page.tile(0, 2, "Semantics F", basis.colors(semantics + constant))
    page.tile(0, 3, "Artifacts G", basis.offset_colors(artifacts - constant))
    page.tile(0, 4, "Residual", basis.offset_colors(residual))
    page.note(
        0, "PCA as RGB, one basis and one range for all: colours add up. Grey is the median of G, and no residual."
    )

    fine = d.query(_patch_centers(h * QUERY_SCALE, w * QUERY_SCALE))
    page.tile(1, 0, f"F, {QUERY_SCALE} times finer", page.smooth(basis.colors(fine + constant)))
    _norms(page, 1, 1, {"raw": raw, "F": semantics, "G": artifacts, "residual": residual})

    if picture:
        page.tile(2, 0, f"Patch ({patch[0]}, {patch[1]})", picture)
        page.mark(2, 0, patch, (h, w))
    uses = {"raw": raw, "F": semantics}
    _clusters(page, 2, 1, uses, "F")
    page.note(2, "Clusters by direction; matched colours.", columns=2)
    _similarities(page, 2, 3, uses, patch)
    return page.image


def draw_denoised(d: Denoised, image: Any = None, patch: tuple[int, int] | None = None) -> PILImage.Image:
    """The picture of `d`; see `Denoised.panel`. Raises `InputError` for a patch outside the grid."""
    raw, denoised = to_numpy(d.raw), to_numpy(d.denoised)
    features = {"raw": raw, "denoised": denoised}
    foot = []
    if d.semantics is not None:
        features = {"raw": raw, "stage 1 F": to_numpy(d.semantics), "denoised": denoised}
        near = d.cosines()
        foot = [f"Cosine to stage 1's F, mean over the patches: raw {near['raw']:.3f}, denoised {near['denoised']:.3f}"]
    removed = raw - denoised
    patch = _checked(patch, denoised)
    picture = None if image is None else load_image(image)
    first = 1 if picture else 0  # the column of raw
    last = first + len(features)  # the column of what was removed
    below = (CAPTION, CAPTION + BAR, CAPTION, BAR)
    page = Page(_aspect(picture, raw), last + 1, below, "Raw = denoised + removed", about_stage2(d), foot)

    basis = visual.ColorBasis.fit(*features.values())
    for column, (name, part) in enumerate(features.items(), first):
        page.tile(0, column, _capital(name), basis.colors(part))
    page.tile(0, last, "Removed", basis.offset_colors(removed))
    page.note(0, "PCA as RGB, one basis and one range for all: colours add up. Grey is nothing removed.", first)
    _norms(page, 1, first, features | {"removed": removed})
    labels = _clusters(page, 2, first, features | {"removed": removed}, "denoised")
    page.note(2, "Clusters by direction; matched colours.", first)
    kept = (visual.directions(raw) * visual.directions(denoised)).sum(axis=-1)
    _similarities(page, 3, first, features, patch, {"Cosine raw to denoised": kept})
    if picture:
        page.tile(0, 0, "Input", picture)
        page.tile(1, 0, "Denoised, over the input", page.over(picture, basis.colors(denoised)))
        page.tile(2, 0, "Clusters, over the input", page.over(picture, visual.CLUSTER_COLORS[labels["denoised"]]))
        page.tile(3, 0, f"Patch ({patch[0]}, {patch[1]})", picture)
        page.mark(3, 0, patch, raw.shape[:2])
    return page.image


def _norms(page: Page, row: int, column: int, parts: Parts) -> None:
    norms = {name: np.linalg.norm(part, axis=-1) for name, part in parts.items()}
    low, high = log_range(list(norms.values()))
    for at, (name, norm) in enumerate(norms.items(), column):
        colors = visual.scale_colors(np.log(np.maximum(norm, low)), math.log(low), math.log(high))
        caption = f"median {number(float(np.median(norm)))}, largest {number(float(norm.max()))}"
        page.tile(row, at, f"Norm of {name}", colors, caption)
    page.bar(row, "Norm", low, high, logarithmic=True, column=column)


def _clusters(page: Page, row: int, column: int, parts: Parts, reference: str) -> dict[str, np.ndarray]:
    """Draws the clusters of each part, in the colours of those of the part `reference`, and returns their labels."""
    wanted = visual.kmeans(parts[reference], CLUSTERS)
    found = {}
    for at, (name, part) in enumerate(parts.items(), column):
        labels = wanted if name == reference else visual.match_labels(visual.kmeans(part, CLUSTERS), wanted, CLUSTERS)
        n = len(np.unique(labels))
        page.tile(
            row,
            at,
            f"{n} clusters of {name}" if n > 1 else f"{_capital(name)}: all alike",
            visual.CLUSTER_COLORS[labels],
        )
        found[name] = labels
    return found


def _similarities(
    page: Page,
    row: int,
    column: int,
    parts: Parts,
    patch: tuple[int, int],
    others: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Similarity to the marked patch in each part; then other cosines [H, W], which do not widen the scale."""
    near = {f"Similarity in {name}": visual.similarity(part, patch) for name, part in parts.items()}
    low = min(SIMILAR, *(float(np.percentile(values, 2)) for values in near.values()))
    for at, (name, values) in enumerate((near | dict(others or {})).items(), column):
        page.tile(row, at, name, visual.scale_colors(values, low, 1))
        if name in near:
            page.mark(row, at, patch, values.shape)
    page.bar(row, "Cosine", low, 1, column=column)


def _checked(patch: tuple[int, int] | None, features: np.ndarray) -> tuple[int, int]:
    h, w, _ = features.shape
    if patch is None:
        return visual.telling_patch(features)
    if not (0 <= patch[0] < h and 0 <= patch[1] < w):
        raise InputError(f"patch must be (row, column) within {h} x {w} patches, got {tuple(patch)}")
    return patch


def _aspect(picture: PILImage.Image | None, features: np.ndarray) -> float:
    return picture.width / picture.height if picture else features.shape[1] / features.shape[0]


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]


def _about_vit(meta: Mapping[str, Any], features: Any) -> list[str]:
    """Which ViT, which layer, what shape; layers are counted as by the option, from 0."""
    h, w, c = features.shape
    vit = meta.get("vit") or {}
    parts = [vit["name"]] if vit.get("name") else []
    if {"layer", "depth", "norm"} <= vit.keys():
        parts.append(f"layer {vit['layer']} of 0 to {vit['depth'] - 1}, norm: {vit['norm']}")
    return [*parts, f"{h} x {w} patches, {c} channels"]


def about_stage1(d: Decomposition) -> list[str]:
    """How it was made, of what `meta` says."""
    parts = _about_vit(d.meta, d.raw)
    if "solver" in d.meta:
        parts.append(f"solver {d.meta['solver']}, {d.meta.get('views')} views")
    seconds = d.meta.get("seconds") or {}
    return [*parts, f"{seconds['total']:.2f} s"] if "total" in seconds else parts


def about_stage2(d: Denoised) -> list[str]:
    parts = _about_vit(d.meta, d.raw)
    denoiser, seconds, stage1 = (d.meta.get(key) or {} for key in ("denoiser", "seconds", "stage1"))
    if denoiser:
        parts.append(f"denoiser: {denoiser['kind']}, {number(round(denoiser['parameters'] / 1e6, 2))} M parameters")
    if {"vit", "denoiser"} <= seconds.keys():
        vit, own = (number(round(1e3 * seconds[part], 1)) for part in ("vit", "denoiser"))
        parts.append(f"ViT {vit} ms, denoiser {own} ms")
    if stage1:
        took = (stage1.get("seconds") or {}).get("total")
        how = f"stage 1: {stage1.get('solver')}, {stage1.get('views')} views"
        parts.append(f"{how}, {took:.2f} s" if took is not None else how)
    return parts


def _patch_centers(h: int, w: int) -> np.ndarray:
    """(x, y) of the cells of an h x w grid over the whole image: float32 [h, w, 2]."""
    y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
    return np.stack([x, y], axis=-1).astype(np.float32)


def log_range(norms: list[np.ndarray]) -> tuple[float, float]:
    """From a little below the usual norm of the smallest part to the largest norm: at most three decades."""
    high = max(float(norm.max()) for norm in norms) or 1.0
    low = min(float(np.percentile(norm, 5)) for norm in norms)
    return min(max(low, high / 1000), high / 2), high
