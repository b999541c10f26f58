"""Pairs of variables whose maximal information coefficient another library, minepy, has told.

`python tests/mic_samples.py` writes its numbers to tests/data/mic_oracle.json, where minepy is installed (its source
archive holds C code that old versions of Cython made: with Python 3.11 and newer it has to be made again).
"""

import json
from pathlib import Path

import numpy as np

ORACLE = Path(__file__).parent / "data" / "mic_oracle.json"
ALPHA, CLUMPS = 0.6, 15
ABOVE = 1e-12  # added for minepy, which would lose a cell to rounding where n^alpha is a whole number (243^0.6 = 27)
KINDS = ("linear", "sine", "noise", "parabola", "ties", "places", "smooth places", "circle", "steps", "outliers")
SIZES = (50, 196, 243, 576, 1369)


def sample(kind: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(x, y), float64 [n] each. "places" have a target of up to 37 values, in order, as patch positions are."""
    random = np.random.default_rng([n, KINDS.index(kind)])
    x, noise = random.random(n), random.standard_normal(n)
    if kind == "linear":
        return x, 2 * x + 0.3 * noise
    if kind == "sine":
        return x, np.sin(9 * x) + 0.2 * noise
    if kind == "noise":
        return x, noise
    if kind == "parabola":
        return x, (x - 0.4) ** 2 + 0.02 * noise
    if kind == "ties":
        return np.round(8 * x), np.round(2 * x + noise)
    if kind == "circle":
        return np.cos(2 * np.pi * x) + 0.1 * noise, np.sin(2 * np.pi * x)
    if kind == "steps":
        return np.floor(6 * x) % 3 + 0.1 * noise, x
    if kind == "outliers":
        return np.where(x < 0.05, 1e6 * noise, x), x**3 + 0.1 * random.random(n)
    side = round(np.sqrt(n))
    place = np.arange(n) % side / side
    return (place * x if kind == "places" else np.sin(5 * place) + 0.5 * noise), place


def oracle(x: np.ndarray, y: np.ndarray) -> float:
    """What minepy says. Raises `ImportError` where it is not installed."""
    import minepy

    found = minepy.MINE(alpha=ALPHA + ABOVE, c=CLUMPS, est="mic_approx")
    found.compute_score(x, y)
    return found.mic()


def main() -> None:
    import minepy

    version = minepy.__version__
    about = {
        "library": "minepy",
        "version": version.decode() if isinstance(version, bytes) else version,
        "alpha": ALPHA + ABOVE,
        "c": CLUMPS,
    }
    values = [json.dumps({"kind": kind, "n": n, "mic": oracle(*sample(kind, n))}) for kind in KINDS for n in SIZES]
    ORACLE.parent.mkdir(exist_ok=True)
    ORACLE.write_text(json.dumps(about)[:-1] + ', "values": [\n' + ",\n".join(values) + "\n]}\n")


if __name__ == "__main__":
    main()
