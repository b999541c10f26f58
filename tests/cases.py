"""What the CUDA ops are run on: names, shapes, dtypes and tolerances of cases, and the bytes and operations of each.

Tests take their parameters from here, and benchmarks their sizes and floors, so that what is measured has been
checked. `small` cases fit the emulator; the others are for a device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

SIZES = {"float32": 4, "tf32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Case:
    """An op on certain shapes. times: how many times torch's error in the same dtype it may have against float64."""

    op: str
    name: str
    shape: Mapping[str, int]
    dtype: str
    words: Mapping[str, str] = field(default_factory=dict)
    times: float = 2.0
    small: bool = True

    def __str__(self) -> str:
        return f"{self.name}-{self.dtype}"

    def flops(self) -> int:
        """Multiplications and additions that the op cannot do without."""
        return COSTS[self.op][0](self)

    def bytes(self) -> int:
        """Bytes from and to memory where everything is moved once."""
        return COSTS[self.op][1](self)


def _gemm_flops(case: Case) -> int:
    s = case.shape
    return 2 * s.get("batch", 1) * s["m"] * s["n"] * s["k"]


def _gemm_bytes(case: Case) -> int:
    s = case.shape
    size = SIZES[case.dtype]
    return s.get("batch", 1) * (size * s["k"] * (s["m"] + s["n"]) + 4 * s["m"] * s["n"])


def _linear_flops(case: Case) -> int:
    s = case.shape
    return 2 * s["rows"] * s["in"] * s["out"] * (1 + s.get("gated", 0))


def _linear_bytes(case: Case) -> int:
    s = case.shape
    weights = s["in"] * s["out"] * (1 + s.get("gated", 0))
    return SIZES[case.dtype] * (s["rows"] * (s["in"] + s["out"]) + weights)


def _norm_flops(case: Case) -> int:
    return 8 * case.shape["rows"] * case.shape["dim"]


def _norm_bytes(case: Case) -> int:
    return case.shape["rows"] * case.shape["dim"] * (SIZES[case.words["x"]] + SIZES[case.dtype])


def _hash_grid_flops(case: Case) -> int:
    s = case.shape
    return 2 * s["n"] * s["levels"] * 2 ** s["dims"] * s["features"]


def _hash_grid_bytes(case: Case) -> int:
    s = case.shape
    return 4 * s["n"] * (s["dims"] + s["levels"] * s["features"] * (2 ** s["dims"] + 1))


def _hashgrid_loss_flops(case: Case) -> int:
    s = case.shape
    return s["n"] * s["channels"] * (15 if s["phase"] == 1 else 23)


def _hashgrid_loss_bytes(case: Case) -> int:
    """F, G's rows, the features (and h), and the gradients."""
    s = case.shape
    return 4 * s["n"] * s["channels"] * (4 if s["phase"] == 1 else 6)


def _artifacts_flops(case: Case) -> int:
    return case.shape["n"] * case.shape["ld"]


def _artifacts_bytes(case: Case) -> int:
    s = case.shape
    return 4 * s["ld"] * (s["n"] + s["patches"]) + 4 * s["n"]


COSTS: dict[str, tuple[Callable[[Case], int], Callable[[Case], int]]] = {
    "gemm": (_gemm_flops, _gemm_bytes),
    "linear": (_linear_flops, _linear_bytes),
    "layer_norm": (_norm_flops, _norm_bytes),
    "hash_grid": (_hash_grid_flops, _hash_grid_bytes),
    "hashgrid_loss": (_hashgrid_loss_flops, _hashgrid_loss_bytes),
    "artifacts": (_artifacts_flops, _artifacts_bytes),
}


def _gemms() -> Iterator[Case]:
    # (m, n, k): whole tiles, one of everything, ragged in each, K of less than a stage, of many, with a tail.
    small = [(128, 128, 128), (1, 1, 1), (64, 64, 8), (70, 37, 50), (129, 72, 200), (40, 200, 33), (3, 130, 515)]
    for dtype in ("float16", "bfloat16", "tf32", "float32"):
        for layout in ("nn", "nt", "tn"):
            for m, n, k in small:
                yield Case("gemm", f"{layout}-{m}x{n}x{k}", {"m": m, "n": n, "k": k}, dtype, {"transpose": layout})
        for layout, m, n, k in (("nt", 2048, 768, 384), ("nn", 2048, 384, 768), ("tn", 768, 384, 2048)):
            shape = {"m": m, "n": n, "k": k}
            yield Case("gemm", f"{layout}-{m}x{n}x{k}", shape, dtype, {"transpose": layout}, small=False)


def _linears() -> Iterator[Case]:
    activations = ("none", "gelu", "gelu_tanh", "quick_gelu", "silu", "relu")
    for dtype in ("float16", "bfloat16", "tf32", "float32"):
        for activation in activations:
            yield _linear(50, 72, 40, dtype, activation)
            if activation != "none":
                yield _linear(50, 72, 40, dtype, activation, gated=True)
        # One of everything; ragged in each; whole tiles; K with a tail of less than 16 bytes.
        for rows, cin, out in ((1, 1, 1), (129, 200, 67), (128, 128, 128), (70, 515, 37)):
            yield _linear(rows, cin, out, dtype, "none")
            yield _linear(rows, cin, out, dtype, "gelu")
            yield _linear(rows, cin, out, dtype, "silu", gated=True)
        for rows in (256, 1369, 5329):
            for cin, out, activation in (
                (768, 2304, "none"),
                (768, 768, "none"),
                (768, 3072, "gelu"),
                (3072, 768, "none"),
            ):
                yield _linear(rows, cin, out, dtype, activation, small=False)


def _linear(
    rows: int, cin: int, out: int, dtype: str, activation: str, gated: bool = False, small: bool = True
) -> Case:
    name = f"{rows}x{cin}x{out}-{activation}{'-gated' if gated else ''}"
    shape = {"rows": rows, "in": cin, "out": out, "gated": int(gated)}
    return Case("linear", name, shape, dtype, {"activation": activation}, small=small)


def _norms() -> Iterator[Case]:
    pairs = (("float32", "float32"), ("float32", "float16"), ("float32", "bfloat16"))
    for x, y in (*pairs, ("float16", "float16"), ("bfloat16", "bfloat16")):
        for kind in ("layer", "rms"):
            # A lane's last vector, whole warps, more warps a row, an odd channel, one channel.
            for rows, dim in ((9, 768), (5, 100), (3, 1023), (2, 2048), (2, 3001), (1, 8192), (4, 1)):
                yield Case(
                    "layer_norm", f"{kind}-{rows}x{dim}-{x}", {"rows": rows, "dim": dim}, y, {"kind": kind, "x": x}
                )
    for rows in (256, 1369, 5329):
        shape = {"rows": rows, "dim": 768}
        yield Case("layer_norm", f"layer-{rows}x768", shape, "bfloat16", {"kind": "layer", "x": "float32"}, small=False)


def _hash_grids() -> Iterator[Case]:
    for dims in (2, 3):
        for features in (1, 2, 4, 8):
            shape = {"n": 150, "dims": dims, "levels": 5, "features": features, "log2_size": 9, "base": 4, "max": 33}
            yield Case("hash_grid", f"{dims}d-{features}", shape, "float32")
    # The paper's grid with its batch, and with a million points.
    for n in (2048, 1 << 20):
        shape = {"n": n, "dims": 2, "levels": 16, "features": 8, "log2_size": 20, "base": 16, "max": 1024}
        yield Case("hash_grid", f"official-{n}", shape, "float32", small=False)


def _hashgrid_losses() -> Iterator[Case]:
    for phase in (1, 2):
        for channels in (1, 7, 96, 264):
            yield _hashgrid_loss(19, channels, phase)
        for channels in (384, 768):
            yield _hashgrid_loss(2048, channels, phase, small=False)


def _hashgrid_loss(n: int, channels: int, phase: int, small: bool = True) -> Case:
    shape = {"n": n, "channels": channels, "phase": phase}
    return Case("hashgrid_loss", f"{n}x{channels}-phase{phase}", shape, "float32", small=small)


def _artifact_maps() -> Iterator[Case]:
    # One sample; ragged; more samples than are looked through at once; more channels than a block has at once.
    for n, patches, ld in ((1, 3, 8), (300, 5, 24), (4200, 3, 8), (70, 4, 1032)):
        yield Case("artifacts", f"{n}-{patches}x{ld}", {"n": n, "patches": patches, "ld": ld}, "float32")
    yield Case("artifacts", "2048-1369x768", {"n": 2048, "patches": 1369, "ld": 768}, "float32", small=False)


ALL = [*_gemms(), *_linears(), *_norms(), *_hash_grids(), *_hashgrid_losses(), *_artifact_maps()]


def cases(op: str, small: bool | None = None) -> list[Case]:
    """Those of one op; small: only those, or only the others."""
    return [case for case in ALL if case.op == op and small in (None, case.small)]
