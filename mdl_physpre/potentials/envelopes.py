"""Functions that fall smoothly from 1 to 0 with the distance."""

from __future__ import annotations

from torch import Tensor

INNER_FRACTION = 0.66  # the cutoff function falls from 1 to 0 between this fraction of the cutoff and the cutoff


def cutoff_function(r: Tensor, cutoff: float | Tensor, inner_fraction: float = INNER_FRACTION) -> tuple[Tensor, Tensor]:
    """f(r) = 6s⁵ − 15s⁴ + 10s³ with s = (r_c − r)/(r_c − x r_c) held within 0 and 1, and df/dr.

    It is 1 up to x r_c, x = ``inner_fraction``, and 0 from r_c on, with continuous second derivatives.
    """
    width = (1.0 - inner_fraction) * cutoff
    s = ((cutoff - r) / width).clamp(0.0, 1.0)
    rest = 1.0 - s
    return _quintic(s), (s * s * rest * rest) * (-30.0 / width)


def smoothstep(distances: Tensor, start: float, stop: float) -> Tensor:
    """The same function between 1 at ``start`` and 0 at ``stop``, without its derivative."""
    return _quintic(((stop - distances) / (stop - start)).clamp(0.0, 1.0))


def _quintic(s: Tensor) -> Tensor:
    return s**3 * (10.0 + s * (6.0 * s - 15.0))
