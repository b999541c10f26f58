"""Stage 1 and the engine in plain torch, written to be read: what the native code is checked and timed against.

It shares nothing with the kernels, so that a common mistake cannot pass. Any floating dtype works; float64 is the
yardstick for gradients.
"""

from .field import ResidualPredictor, SemanticsField, SharedArtifacts
from .hash_grid import HashGridEncoding
from .losses import reconstruction_loss, residual_loss
from .recipe import Recipe, Stage1Model, Trainer, fit, learning_rate

__all__ = [
    "HashGridEncoding",
    "Recipe",
    "ResidualPredictor",
    "SemanticsField",
    "SharedArtifacts",
    "Stage1Model",
    "Trainer",
    "fit",
    "learning_rate",
    "reconstruction_loss",
    "residual_loss",
]
