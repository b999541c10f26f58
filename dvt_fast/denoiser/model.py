"""Stage 2: one forward pass that turns a ViT's raw features into clean ones, for any image of that ViT.

The reference's denoiser adds a learned position embedding to the features and runs a transformer block over them. Its
state dict is this module's: `pos_embed` [1, h * w, C], then `denoiser.*` for one block, `denoiser.0.*` ... for several.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import arrays
from ..errors import InputError
from ..vit import pair
from . import checkpoint
from .block import Block, ConvBlock, resample_pos_embed, rotary_angles

if TYPE_CHECKING:
    from ..vit import ViT

KINDS = {
    "block": "a transformer block after a learned position embedding: the paper's denoiser",
    "block-nopos": "the block without position embedding",
    "rotary": "the block with rotary positions in its attention instead of an added embedding",
    "registers": "the block with position embedding and four learned extra tokens",
    "conv1": "position embedding and 1 x 1 convolutions, with about the block's parameters",
    "conv3": "position embedding and a 3 x 3 convolution, with about the block's parameters",
    "map": "nothing but the position embedding: subtracts one artifact map from every image",
}
HEAD_DIM = 64
REGISTERS = 4


class Denoiser(nn.Module):
    """Raw patch features of a ViT in, clean ones out: [B, h, w, C] -> [B, h, w, C], for any h and w.

    dim: channels C of the features. grid: patches (h, w) that the position embedding is made for; for other maps it is
    resampled. num_blocks: blocks in a row. kind: a key of `KINDS`; all but "block" are there to be compared with.
    num_heads: of the attention, None for heads of 64 channels (one head where C is smaller).

    Attributes: dim, grid, num_blocks, kind, num_heads, and meta, a dict of JSON types: "vit", what `ViT.describe` said
    of the ViT it was trained for, and "training", how; empty for a fresh or foreign one.

    Source: Yang et al., arXiv 2401.02957, section 4.3. Raises `InputError` for sizes that do not go together.
    """

    def __init__(
        self,
        dim: int,
        grid: tuple[int, int] = (37, 37),
        num_blocks: int = 1,
        *,
        kind: str = "block",
        num_heads: int | None = None,
    ):
        super().__init__()
        if kind not in KINDS:
            raise InputError(f"unknown kind of denoiser {kind!r}; expected one of {', '.join(KINDS)}")
        numbers = {"dim": dim, "num_blocks": num_blocks, "num_heads": 1 if num_heads is None else num_heads}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be an int of at least 1, got {value!r}")
        num_heads = max(1, dim // HEAD_DIM) if num_heads is None else num_heads
        if dim % num_heads or (kind == "rotary" and dim // num_heads % 4):
            wanted = "divide dim, into heads of a multiple of 4" if kind == "rotary" else "divide dim"
            raise InputError(f"num_heads must {wanted}, got dim {dim} and num_heads {num_heads}")
        self.dim, self.grid, self.num_blocks = dim, pair(grid, "grid"), num_blocks
        self.kind, self.num_heads = kind, num_heads
        self.meta: dict[str, Any] = {}
        self.pos_embed = None
        if kind not in ("block-nopos", "rotary"):
            self.pos_embed = nn.Parameter(0.02 * torch.randn(1, self.grid[0] * self.grid[1], dim))
        self.registers = nn.Parameter(0.02 * torch.randn(1, REGISTERS, dim)) if kind == "registers" else None
        blocks = [self._block() for _ in range(num_blocks)]
        self.denoiser = blocks[0] if num_blocks == 1 else nn.ModuleList(blocks)

    def _block(self) -> nn.Module:
        if self.kind in ("conv1", "conv3"):
            return ConvBlock(self.dim, int(self.kind[-1]))
        return nn.Identity() if self.kind == "map" else Block(self.dim, self.num_heads)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Raw features [B, h, w, C] -> clean ones [B, h, w, C]."""
        if x.ndim != 4 or x.shape[-1] != self.dim:
            raise InputError(f"features must have shape [B, h, w, {self.dim}], got {list(x.shape)}")
        size = (x.shape[1], x.shape[2])
        if self.pos_embed is not None:
            x = x + resample_pos_embed(self.pos_embed, self.grid, size).reshape(1, *size, self.dim)
        if self.kind == "map":
            return x
        blocks = self.denoiser if isinstance(self.denoiser, nn.ModuleList) else [self.denoiser]
        if self.kind in ("conv1", "conv3"):
            for block in blocks:
                x = block(x)
            return x
        patches = size[0] * size[1]
        tokens = x.reshape(len(x), patches, self.dim)
        if self.registers is not None:
            tokens = torch.cat([tokens, self.registers.expand(len(x), -1, -1)], dim=1)
        rotary = None
        if self.kind == "rotary":
            cos, sin = rotary_angles(self.grid, size, self.dim // self.num_heads)
            rotary = cos.to(x.device), sin.to(x.device)
        for block in blocks:
            tokens = block(tokens, rotary)
        return tokens[:, :patches].reshape(x.shape)

    @torch.no_grad()
    def denoise(self, features: Any) -> Any:
        """Clean features of raw ones, [h, w, C] or [B, h, w, C]: NumPy or torch of any floating type, to float32.

        The work is done where this module is; a tensor comes back on its own device. Raises `InputError` for another
        shape or type.
        """
        shape = tuple(getattr(features, "shape", ()))
        if len(shape) not in (3, 4) or shape[-1] != self.dim:
            raise InputError(f"features must have shape [h, w, {self.dim}] or [B, h, w, {self.dim}], got {list(shape)}")
        own = next(self.parameters())
        is_tensor = arrays.is_tensor(features)
        x = features.detach() if is_tensor else torch.from_numpy(arrays.to_numpy(features, "features"))
        if not x.is_floating_point():
            raise InputError(f"features must be floating point numbers, got {x.dtype}")
        x = x.to(own.device, own.dtype)
        clean = self(x if x.ndim == 4 else x[None]).float()
        clean = clean if len(shape) == 4 else clean[0]
        return clean.to(features.device) if is_tensor else clean.cpu().numpy()

    @torch.no_grad()
    def start_from(self, artifacts: Any) -> None:
        """Make the position embedding minus `artifacts` [h, w, C] of this denoiser's grid, a mean of raw - clean.

        Training then starts at the subtraction of that map. Adam moves a weight by at most about the learning rate a
        step, and some artifacts are hundreds: an embedding that starts at zero would not get there.
        """
        if self.pos_embed is None:
            raise InputError(f"a denoiser of kind {self.kind!r} has no position embedding to start from artifacts")
        values = torch.as_tensor(arrays.to_numpy(artifacts, "artifacts"))
        if tuple(values.shape) != (*self.grid, self.dim):
            raise InputError(f"artifacts must have shape {[*self.grid, self.dim]}, got {list(values.shape)}")
        self.pos_embed.copy_(-values.reshape(1, -1, self.dim))

    def check(self, vit: ViT) -> None:
        """Raise `InputError` unless this denoiser fits the features of `vit`, by width and by what `meta` says."""
        checkpoint.check(self, vit)

    def to_bytes(self, dtype: str = "float32") -> bytes:
        """The file that `save` writes."""
        return checkpoint.pack(self, dtype)

    def save(self, path: str | os.PathLike[str], dtype: str = "float32") -> None:
        """Write a safetensors file, whole or not at all. dtype: "float32", "float16" or "bfloat16".

        Raises `OutputError` where it cannot be written and `NonFiniteError` for weights that are not finite.
        """
        from ..files import write_whole

        write_whole(path, self.to_bytes(dtype))

    @classmethod
    def from_checkpoint(
        cls, path: str | os.PathLike[str], *, grid: tuple[int, int] | None = None, num_heads: int | None = None
    ) -> Denoiser:
        """A denoiser from a file: ours, or a `.pth` of the reference implementation (read without running code).

        grid, num_heads: for the reference's files, which do not say them; else a square grid and heads of 64. Raises
        `WeightsError`, one line: no such file, cut, foreign, of a newer version, with missing keys or wrong shapes.
        """
        config, state, meta = checkpoint.read(path, grid, num_heads)
        denoiser = cls(**config)
        denoiser.load_state_dict(state)
        denoiser.meta = meta
        return denoiser.eval()

    @classmethod
    def from_pretrained(cls, repo: str, file: str) -> Denoiser:
        """A denoiser from the Hugging Face hub or its cache: `from_pretrained("jjiaweiyang/DVT",
        "voc_denoised/vit_base_patch14_dinov2.lvd142m.pth")`. Raises `WeightsError` as `from_checkpoint` does."""
        return cls.from_checkpoint(checkpoint.download(repo, file))
