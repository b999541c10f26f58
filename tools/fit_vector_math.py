"""Prints the polynomial coefficients of csrc/core/vector_math.h: weighted minimax fits, rounded to float32.

Each polynomial is found by Remez's exchange in double precision. The constant term is rounded (or set to 1) first and
the others are fitted again around it; the last column is the weighted error that the rounded coefficients reach.
Needs NumPy and SciPy.
"""

from collections.abc import Callable

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial
from scipy.special import ndtr

Function = Callable[[np.ndarray], np.ndarray]


def remez(f: Function, weight: Function, low: float, high: float, degree: int) -> Chebyshev:
    """The polynomial p of least max |weight (f - p)| on [low, high]."""
    points, count = 20000, degree + 2
    nodes = -np.cos(np.pi * np.arange(points) / (points - 1))
    x = (low + high) / 2 + (high - low) / 2 * nodes
    y, w = f(x), weight(x)
    basis = np.polynomial.chebyshev.chebvander(nodes, degree)
    reference = np.linspace(0, points - 1, count).round().astype(int)
    for _ in range(100):
        matrix = np.c_[basis[reference], (-1.0) ** np.arange(count) / w[reference]]
        coefficients = np.linalg.solve(matrix, y[reference])[:-1]
        error = w * (y - basis @ coefficients)
        # One extremum of every stretch of one sign; the surplus is dropped at the ends.
        stretches = np.split(np.arange(points), np.flatnonzero(np.diff(np.sign(error))) + 1)
        extrema = [s[np.argmax(np.abs(error[s]))] for s in stretches]
        while len(extrema) > count:
            extrema.pop(0 if abs(error[extrema[0]]) < abs(error[extrema[-1]]) else -1)
        if len(extrema) < count or np.array_equal(extrema, reference):
            break
        reference = np.array(extrema)
    return Chebyshev(coefficients, domain=[low, high])


def fit(
    name: str, f: Function, weight: Function, low: float, high: float, degree: int, constant: float | None = None
) -> Polynomial:
    """Fits f, prints the coefficients, of rising powers and rounded to float32, and returns their polynomial."""
    if constant is None:
        constant = float(np.float32(remez(f, weight, low, high, degree)(0.0)))
    rest = remez(lambda x: (f(x) - constant) / x, lambda x: weight(x) * np.abs(x), low, high, degree - 1)
    rounded = np.array([constant, *rest.convert(kind=Polynomial).coef], np.float32)
    polynomial = Polynomial(rounded.astype(np.float64))
    x = np.linspace(low, high, 100_000)
    error = np.abs(weight(x) * (polynomial(x) - f(x))).max()
    print(f"{name}: {', '.join(f'{c:.9g}f' for c in polynomial.coef)}  // {error:.1e}")
    return polynomial


def main() -> None:
    # 2^x and e^x for |x| up to half a step: relative errors; 1 at 0, so that the largest weight of a softmax is 1.
    half_ln2 = np.log(2) / 2
    fit("exp2", np.exp2, lambda x: np.exp2(-x), -0.5, 0.5, 5, 1.0)
    fit("exp_nonpositive", np.exp, lambda x: np.exp(-x), -half_ln2, half_ln2, 5, 1.0)
    fit("exp", np.exp, lambda x: np.exp(-x), -half_ln2, half_ln2, 6, 1.0)

    # r(t) = Phi(-t)^(1/8). t r^8 is wanted to a small absolute error, which r's is times 8 t r^7 (t taken as at least
    # 1/4: the relative error of x Phi(x) counts at 0), and r^8 to about 1e-3 of itself where it vanishes.
    def root(t: np.ndarray) -> np.ndarray:
        return ndtr(-t) ** (1 / 8)

    r = fit("gelu", root, lambda t: np.maximum(8 * np.maximum(t, 0.25) * root(t) ** 7, 2.4e-5 / root(t)), 1e-9, 5.8, 8)
    beyond = r(np.linspace(5.8, 7, 1000))
    assert (np.diff(beyond) < 0).all() and beyond[-1] > 0  # so that t may be cut at 7


if __name__ == "__main__":
    main()
