"""torch.compile at its best, for the cases of gpu_stage2.py: mode="max-autotune", its graph captured by who times it.

Tuning takes a minute and more a case, and torch keeps what it found. So this program compiles every case beforehand,
without dvt_fast's native module, while that is being built:

    python benchmarks/gpu_compile.py [--seconds 200]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from models import block_module, vit_modules
from torch import nn

BLOCKS = [(768, 37), (768, 16), (768, 73), (384, 37), (384, 16), (384, 73)]  # channels, patches a side
VITS = {"ViT-B/14": "vit_base_patch14_dinov2", "ViT-S/14": "vit_small_patch14_dinov2"}
VIT_SIZE = 518
TINY_BLOCKS, TINY_VITS = [(64, 5)], {"mini": "dvt_mini"}
COMPILE_SECONDS = {"block": 60.0, "vit": 150.0}  # with less left, a case is not compiled


def compiled(module: nn.Module, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A run of `module` on `x`, both on one device, through torch.compile."""
    torch._dynamo.reset()
    mode = "max-autotune-no-cudagraphs" if x.is_cuda else "default"
    function = torch.compile(module, mode=mode, dynamic=False)

    def run() -> torch.Tensor:
        with torch.no_grad():
            return function(x)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=200)
    parser.add_argument("--tiny", action="store_true", help="small models, to test this program")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    end = time.monotonic() + arguments.seconds
    blocks, vits, size = (TINY_BLOCKS, TINY_VITS, 64) if arguments.tiny else (BLOCKS, VITS, VIT_SIZE)
    made = [(f"block C={c} N={n * n}", lambda c=c, n=n: (block_module(c, n), (1, n, n, c))) for c, n in blocks]
    made += [
        (label, lambda name=name: (vit_modules(name, size)[1], (1, 3, size, size))) for label, name in vits.items()
    ]
    for label, make in made:
        left = end - time.monotonic()
        if left < COMPILE_SECONDS["block" if label.startswith("block") else "vit"] / 2 and not arguments.tiny:
            print(f"{label}: not compiled, {left:.0f} s were left", flush=True)
            continue
        module, shape = make()
        try:
            compiled(module.to(device, torch.bfloat16), torch.randn(shape).to(device, torch.bfloat16))()
            print(f"{label}: compiled, {end - time.monotonic():.0f} s left", flush=True)
        except Exception as failure:
            print(f"{label}: {type(failure).__name__}: {failure}", flush=True)


if __name__ == "__main__":
    main()
