"""The engine: a vision transformer and a denoiser, or one of them, as one file and one call, without torch."""

from .engine import Engine, Session

__all__ = ["Engine", "Session"]
