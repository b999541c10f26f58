"""What stage 1 finds in one image, as one object that can be queried, saved and looked at.

raw = semantics + artifacts + residual: what the ViT said, the part that belongs to the content, the part that belongs
to the position in the frame, and what is left.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .arrays import like, to_numpy
from .errors import InputError
from .files import pack_safetensors, read_safetensors, write_whole

if TYPE_CHECKING:
    from PIL import Image as PILImage

FORMAT, VERSION = "dvt_fast.decomposition", 1
PARTS = ("raw", "semantics", "artifacts", "residual")

# Field kinds by name: where the class is. Imported when a file asks for one.
FIELDS = {
    "bilinear_grid": ("dvt_fast.solvers.bilinear_field", "BilinearField"),
    "hash_grid": ("dvt_fast.solvers.hash_grid_field", "HashGridField"),
}


class Field(Protocol):
    """The semantics as a function of image coordinates."""

    def query(self, coords: np.ndarray) -> np.ndarray:
        """Values at (x, y) in [0, 1]: float32 [..., 2] -> float32 [..., C]."""
        ...

    def state(self) -> tuple[Mapping[str, np.ndarray], Mapping[str, Any]]:
        """Arrays by name, and what else `from_state` needs: JSON types, with "kind", a key of `FIELDS`."""
        ...

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Field:
        """The field that `state` described."""
        ...


@dataclasses.dataclass(eq=False)
class Decomposition:
    """The features of one image, taken apart.

    raw: [H, W, C] float32, the ViT's features of the whole image.
    semantics: [H, W, C], F at the patches of the whole image; `query` gives it anywhere.
    artifacts: [H, W, C], G by patch index; its robust mean over the patches (`solvers.gauge`) is 0.
    residual: [H, W, C], raw - semantics - artifacts.
    field: F itself.
    meta: how it was made: solver, options, vit, views, seed, version, seconds; JSON types only.

    The four arrays are torch tensors where the features were, and NumPy arrays otherwise.
    """

    raw: Any
    semantics: Any
    artifacts: Any
    residual: Any
    field: Field
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = tuple(self.raw.shape)
        if len(shape) != 3:
            raise InputError(f"raw must have shape [H, W, C], got {list(shape)}")
        for name in PARTS[1:]:
            if tuple(getattr(self, name).shape) != shape:
                raise InputError(f"{name} must have raw's shape {list(shape)}, got {list(getattr(self, name).shape)}")

    def __repr__(self) -> str:
        h, w, c = self.raw.shape
        return f"Decomposition({h}x{w} patches, {c} channels, solver={self.meta.get('solver')!r})"

    def query(self, coords: Any) -> Any:
        """The semantics F at any points of the image.

        coords: (x, y) in [0, 1], from the left and top edge: [..., 2], a NumPy array, a torch tensor or nested lists.
        Returns float32 [..., C], a tensor on the same device for a tensor, else a NumPy array. Raises `InputError`
        for another shape or points outside the image.
        """
        points = to_numpy(coords, "coords").astype(np.float32, copy=False)
        if points.ndim == 0 or points.shape[-1] != 2:
            raise InputError(f"coords must have shape [..., 2], got {list(points.shape)}")
        if points.size and not (points.min() >= 0 and points.max() <= 1):  # written so that NaN fails
            raise InputError(f"coords must be in [0, 1], got {points.min():g} to {points.max():g}")
        return like(self.field.query(np.ascontiguousarray(points)), coords)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one safetensors file, which appears whole or not at all.

        The tensors are the four parts and "field.*"; the metadata holds one JSON text under "dvt_fast". Raises
        `NonFiniteError` rather than store NaN or infinity, and `OutputError` for a file that cannot be written.
        """
        write_whole(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of the file that `save` writes. Raises `NonFiniteError` for NaN or infinity."""
        arrays = {name: to_numpy(getattr(self, name)) for name in PARTS}
        field_arrays, field_meta = self.field.state()
        arrays |= {f"field.{name}": to_numpy(array) for name, array in field_arrays.items()}
        return pack_safetensors(arrays, FORMAT, VERSION, meta=self.meta, field=dict(field_meta))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Decomposition:
        """Read a file of `save`; the arrays are NumPy arrays. Raises `InputError` for a file that is not one."""
        header, arrays = read_safetensors(Path(path), FORMAT, VERSION)
        field_meta, meta = header.get("field"), header.get("meta")
        if not isinstance(field_meta, dict) or not isinstance(meta, dict):
            raise InputError(f"{path}: its metadata lacks 'field' or 'meta'")
        if field_meta.get("kind") not in FIELDS:
            raise InputError(f"{path}: unknown field {field_meta.get('kind')!r}; expected one of {', '.join(FIELDS)}")
        module, name = FIELDS[field_meta["kind"]]
        field_class = getattr(importlib.import_module(module), name)
        try:
            raw, semantics, artifacts, residual = (arrays.pop(part) for part in PARTS)
            field_arrays = {name.removeprefix("field."): array for name, array in arrays.items()}
            field = field_class.from_state(field_arrays, field_meta)
            return cls(raw, semantics, artifacts, residual, field, meta)
        except KeyError as error:
            raise InputError(f"{path}: holds no {error.args[0]!r}") from None
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def panel(self, image: Any = None, patch: tuple[int, int] | None = None) -> PILImage.Image:
        """A labelled picture: raw, F, G and residual in colour, their norms, clusters, and similarity to one patch.

        image: the input, to be shown beside them. patch: (row, column) for the similarity; None chooses one.
        Needs Pillow, from the extra [cli].
        """
        from .panel import draw

        return draw(self, image=image, patch=patch)
