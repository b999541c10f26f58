"""Stage 2: clean features of an image in one forward pass of a ViT and one of a trained denoiser."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import __version__
from .arrays import to_numpy
from .decomposition import Decomposition
from .errors import InputError, NonFiniteError
from .files import pack_safetensors, read_safetensors, write_whole
from .images import load_image
from .stage1 import decompose
from .views import DEFAULT_PLAN
from .visual import directions

if TYPE_CHECKING:
    from PIL import Image as PILImage

    from .denoiser import Denoiser
    from .images import ImageSource
    from .progress import Progress
    from .views import Plan
    from .vit import ViT

FORMAT, VERSION = "dvt_fast.denoised", 1


@dataclasses.dataclass(eq=False)
class Denoised:
    """The features of one image, before and after the denoiser.

    raw: [H, W, C] float32, the ViT's features. denoised: [H, W, C], the denoiser's.
    semantics: [H, W, C], stage 1's F of the same image, to compare with; None where stage 1 was not run.
    decomposition: all that stage 1 found; not saved but for its F.
    meta: how it was made: vit, denoiser, stage1, seconds, version; JSON types only.
    """

    raw: Any
    denoised: Any
    semantics: Any = None
    decomposition: Decomposition | None = None
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.semantics is None and self.decomposition is not None:
            self.semantics = self.decomposition.semantics
        shape = tuple(self.raw.shape)
        if len(shape) != 3:
            raise InputError(f"raw must have shape [H, W, C], got {list(shape)}")
        for name, part in (("denoised", self.denoised), ("semantics", self.semantics)):
            if part is not None and tuple(part.shape) != shape:
                raise InputError(f"{name} must have raw's shape {list(shape)}, got {list(part.shape)}")

    def __repr__(self) -> str:
        h, w, c = self.raw.shape
        kind = (self.meta.get("denoiser") or {}).get("kind")
        return f"Denoised({h}x{w} patches, {c} channels, denoiser={kind!r})"

    def cosines(self) -> dict[str, float]:
        """Cosine to stage 1's F, mean over the patches, of "raw" and "denoised"; empty where there is no stage 1."""
        if self.semantics is None:
            return {}
        goal = directions(to_numpy(self.semantics))
        parts = {"raw": to_numpy(self.raw), "denoised": to_numpy(self.denoised)}
        return {name: float((directions(part) * goal).sum(axis=-1).mean()) for name, part in parts.items()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write raw, denoised and, where it is there, semantics to one safetensors file, whole or not at all.

        Raises `NonFiniteError` rather than store NaN or infinity, and `OutputError` for a file that cannot be written.
        """
        write_whole(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of the file that `save` writes. Raises `NonFiniteError` for NaN or infinity."""
        parts = {"raw": self.raw, "denoised": self.denoised, "semantics": self.semantics}
        arrays = {name: to_numpy(part) for name, part in parts.items() if part is not None}
        return pack_safetensors(arrays, FORMAT, VERSION, meta=self.meta)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Denoised:
        """Read a file of `save`; the arrays are NumPy arrays. Raises `InputError` for a file that is not one."""
        header, arrays = read_safetensors(Path(path), FORMAT, VERSION)
        if not isinstance(header.get("meta"), dict):
            raise InputError(f"{path}: its metadata lacks 'meta'")
        try:
            return cls(arrays["raw"], arrays["denoised"], arrays.get("semantics"), meta=header["meta"])
        except KeyError as error:
            raise InputError(f"{path}: holds no {error.args[0]!r}") from None
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def panel(self, image: Any = None, patch: tuple[int, int] | None = None) -> PILImage.Image:
        """A labelled picture: raw, stage 1's F where it is there, denoised and what was removed in colour, their norms
        and clusters, and similarity to one patch.

        image: the input, to be shown beside them. patch: (row, column) for the similarity; None chooses one.
        Needs Pillow, from the extra [cli].
        """
        from .panel import draw_denoised

        return draw_denoised(self, image=image, patch=patch)


def denoise(
    image: ImageSource,
    vit: ViT,
    denoiser: Denoiser | str | os.PathLike[str] | None = None,
    *,
    stage1: Plan | bool | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Denoised:
    """Stage 2 on one image: the ViT's features, and what the denoiser makes of them.

    image: a path, a PIL image or an array (see `images.load_image`). denoiser: a `Denoiser`, or what names one (see
    `denoiser.checkpoint.load_denoiser`): the path of a file, "hf://...", a published one, or None for the one that
    comes with the ViT; load it once for many images. stage1: a plan of views (True for the usual one) to run stage 1
    too, and compare; progress and options are then those of `decompose`. Returns float32 NumPy arrays.

    Raises `InputError` (a denoiser of another ViT, an image that cannot be read), `WeightsError` (a denoiser that
    cannot be loaded), `NonFiniteError`, and what `decompose` raises.
    """
    start = time.perf_counter()
    if isinstance(vit, str):
        raise InputError(f"vit must be a dvt_fast.ViT, got str: dvt_fast.ViT({vit!r}) makes one")
    if isinstance(stage1, bool):
        stage1 = DEFAULT_PLAN if stage1 else None
    if stage1 is None and "device" in options:
        raise InputError("device: features are denoised where the ViT is, so give it there: ViT(..., device='cuda')")
    if stage1 is None and options:
        raise InputError(f"{', '.join(options)}: options of stage 1, which is not asked for: give stage1, too")
    model = _denoiser(denoiser, vit)
    picture = load_image(image)

    began = time.perf_counter()
    features = vit.features(vit.transform(picture)[None])[0]
    raw = to_numpy(features)
    seen = time.perf_counter()
    denoised = to_numpy(model.denoise(features))
    seconds = {"vit": seen - began, "denoiser": time.perf_counter() - seen}
    for name, part in (("the ViT's features", raw), ("the denoised features", denoised)):
        if not np.isfinite(part).all():
            raise NonFiniteError(f"{name} hold NaN or infinity")
    decomposition = None
    if stage1 is not None:
        decomposition = decompose(picture, vit, stage1, progress=progress, **options)
    seconds["total"] = time.perf_counter() - start
    meta: dict[str, Any] = {"vit": vit.describe(), "denoiser": _describe(model), "version": __version__}
    meta |= {"stage1": decomposition.meta if decomposition else None, "seconds": seconds}
    return Denoised(raw, denoised, decomposition=decomposition, meta=meta)


def _denoiser(denoiser: Any, vit: ViT) -> Denoiser:
    from .denoiser import Denoiser

    if denoiser is None or isinstance(denoiser, (str, os.PathLike)):
        from .denoiser.checkpoint import load_denoiser

        return load_denoiser(denoiser, vit)
    if not isinstance(denoiser, Denoiser):
        raise InputError(f"denoiser must be a dvt_fast.Denoiser or the path of one, got {type(denoiser).__name__}")
    denoiser.check(vit)
    return denoiser


def _describe(denoiser: Denoiser) -> dict[str, Any]:
    """A denoiser for the metadata of files: plain JSON types."""
    return {
        "kind": denoiser.kind,
        "num_blocks": denoiser.num_blocks,
        "grid": list(denoiser.grid),
        "parameters": sum(parameter.numel() for parameter in denoiser.parameters()),
        "training": denoiser.meta.get("training"),
    }
