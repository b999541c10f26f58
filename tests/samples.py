"""Small made-up objects that several tests use."""

import numpy as np

from dvt_fast.decomposition import Decomposition
from dvt_fast.solvers.bilinear_field import BilinearField


def make_decomposition(h=3, w=4, c=5, kind=np.asarray, seed=0) -> Decomposition:
    rng = np.random.default_rng(seed)
    semantics, artifacts, residual = (rng.standard_normal((h, w, c)).astype(np.float32) for _ in range(3))
    parts = [kind(part) for part in (semantics + artifacts + residual, semantics, artifacts, residual)]
    nodes = rng.standard_normal((6, 7, c)).astype(np.float32)
    return Decomposition(*parts, BilinearField(nodes), {"solver": "direct", "vit": {"name": "x"}})
