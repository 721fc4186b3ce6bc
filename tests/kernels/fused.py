"""A multiply-add that is rounded once, in NumPy."""

import numpy as np


def fused(a, b, c):
    """a · b + c of float32 numbers, as float32. The product is exact in float64. The sum is rounded to
    float64 first, which changes the result of about one sum in 2²⁹."""
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        return (np.float64(a) * np.float64(b) + np.float64(c)).astype(np.float32)
