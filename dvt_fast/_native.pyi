"""The compiled module is checked by tests rather than by types: it is private, and its callers are few."""

from typing import Any

def __getattr__(name: str) -> Any: ...
