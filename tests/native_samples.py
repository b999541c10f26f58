"""For tests of the C library: a small engine file, and builds of clients.

The engine file is written from docs/engine_file.md alone: without torch, without the exporter.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save

ROOT = Path(__file__).parents[1]
# The same CMake and Ninja as in the Makefile: with others everything would be compiled again.
TOOLS = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

DIM, HEADS, HIDDEN, PATCH = 64, 2, 160, 16
IMAGE_SIZE = (48, 64)
GRID = (IMAGE_SIZE[0] // PATCH, IMAGE_SIZE[1] // PATCH)


def random_engine(seed: int = 0) -> bytes:
    """A ViT of two blocks with a class token and a denoiser of one, large enough that every part tells."""
    rng = np.random.default_rng(seed)
    tensors = {}

    def add(name: str, *shape: int, around: float = 0.0) -> None:
        scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.3
        tensors[name] = (around + scale * rng.standard_normal(shape)).astype(np.float32)

    def norm(name: str) -> None:
        add(f"{name}.weight", DIM, around=1)
        add(f"{name}.bias", DIM)

    def linear(name: str, size_in: int, size_out: int) -> None:
        add(f"{name}.weight", size_out, size_in)
        add(f"{name}.bias", size_out)

    layer = {"kind": "layer", "eps": 1e-6}

    def transformer(prefix: str, depth: int, pos_grid: tuple[int, int], extra_tokens: int, norm_after: bool) -> dict:
        add(f"{prefix}.pos_embed", pos_grid[0] * pos_grid[1], DIM)
        if extra_tokens:
            add(f"{prefix}.extra_tokens", extra_tokens, DIM)
        for i in range(depth):
            block = f"{prefix}.blocks.{i}"
            norm(f"{block}.norm1")
            linear(f"{block}.qkv", DIM, 3 * DIM)
            linear(f"{block}.proj", DIM, DIM)
            norm(f"{block}.norm2")
            linear(f"{block}.fc1", DIM, HIDDEN)
            linear(f"{block}.fc2", HIDDEN, DIM)
        if norm_after:
            norm(f"{prefix}.norm")
        no_norms = dict.fromkeys(("q_norm", "k_norm", "attention_norm", "mlp_norm"))
        return {
            "dim": DIM, "depth": depth, "heads": HEADS, "head_dim": DIM // HEADS, "hidden": HIDDEN,
            "activation": "gelu", "gated": False, "pos_grid": pos_grid,
            "extra_tokens": extra_tokens, "extra_first": True, "norm_pre": None, "norm": layer if norm_after else None,
            "block": {"norm1": layer, "norm2": layer, **no_norms}, "rotary": None,
        }  # fmt: skip

    linear("patch_embed", 3 * PATCH * PATCH, DIM)
    header = {
        "format": "dvt_fast.engine",
        "version": 1,
        "patch_embed": {
            "patch": [PATCH, PATCH], "stride": [PATCH, PATCH], "image_size": IMAGE_SIZE,
            "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "norm": None,
        },
        "vit": transformer("vit", 2, GRID, 1, True),
        "denoiser": transformer("denoiser", 1, (6, 5), 0, False),
        "source": {"vit": {"name": "random"}, "denoiser": {"kind": "block"}},
    }  # fmt: skip
    return save(tensors, metadata={"dvt_fast": json.dumps(header)})


def run(*command: str | Path, folder: Path = ROOT, **environment: str) -> str:
    """What a command prints; where it fails, the test does, with all that it said."""
    env = os.environ | TOOLS | environment
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, cwd=folder)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}"
    return done.stdout


def where(option: str, python: Path | None = None) -> Path:
    """A folder of the C library, as `python -m dvt_fast` gives it: of this checkout, or of another environment."""
    folder = python.parent if python else ROOT
    return Path(run(python or sys.executable, "-m", "dvt_fast", option, folder=folder).strip())


def cmake_build(source: Path, build: Path, *options: str, target: str = "all") -> Path:
    run("cmake", "-S", source, "-B", build, "-G", "Ninja", *options)
    run("cmake", "--build", build, "--target", target)
    return build
