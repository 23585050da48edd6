"""Estimates beside the truth: correlation, slope, error, freed of the noise in the truth.

Letters as in ``segcredit.credit_audit.metrics.arrays``; ``N`` places of a completion: its tokens,
its segments, or the one completion itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segcredit.credit_audit.metrics.arrays import Bools, Floats, Truth
from segcredit.credit_audit.metrics.estimates import Combine, Estimate
from segcredit.credit_audit.metrics.moments import of, square


@dataclass(frozen=True, slots=True, eq=False)
class Matched:
    """An estimate and the truth at the same places of each completion."""

    estimate: Floats
    """(B,N)"""
    true: Floats
    """(B,H,N)"""
    weights: Floats | Bools
    """(B,N) how much each place counts; 0 where the completion has no such place."""

    def metric(self, truth: Truth, combine: Combine) -> Estimate:
        """Estimates a function of number, sums and products, see ``Spread``."""
        there_BN = self.weights > 0
        estimate_BN = np.where(there_BN, self.estimate, 0.0)
        true_BHN = np.where(there_BN[:, None], self.true, 0.0)
        mean_BN = true_BHN.mean(1)
        products = estimate_BN**2, square(true_BHN), estimate_BN * mean_BN
        moments = np.ones_like(mean_BN), estimate_BN, mean_BN, *products
        return of(truth, combine, *(self.weights * moment_BN for moment_BN in moments))


class Spread:
    """Means, variances and covariance of an estimate x and the truth y, from their moments.

    y² is the product of different splits, so that noise in the truth biases nothing here.
    """

    def __init__(self, moments: Floats) -> None:
        number, x, y, xx, yy, xy = np.moveaxis(moments, -1, 0)
        self.x, self.y = x / number, y / number
        self.xx, self.yy, self.xy = xx / number, yy / number, xy / number
        self.var_x = _no_rounding(self.xx - self.x**2, self.xx)
        self.var_y = self.yy - self.y**2
        self.cov = self.xy - self.x * self.y


def correlation(moments: Floats) -> Floats:
    """Computes cov(x, y) / √(var x · var y); 0 where x does not vary."""
    at = Spread(moments)
    return np.where(at.var_x == 0, 0.0, at.cov / np.sqrt(at.var_x * at.var_y))


def slope(moments: Floats) -> Floats:
    """Computes cov(x, y) / var y: by how much x moves where y moves by 1."""
    at = Spread(moments)
    return at.cov / at.var_y


def residual(moments: Floats) -> Floats:
    """Computes (var x − cov² / var y) / var y: what of x is no straight line in y, over var y."""
    at = Spread(moments)
    return (at.var_x - at.cov**2 / at.var_y) / at.var_y


def partial(moments: Floats) -> Floats:
    """Computes the slope of x on z at equal y, in standard deviations of x and of z.

    With x an estimate, y the truth, z known without noise::

        (cov(x, z) var y − cov(x, y) cov(y, z)) / (var y var z − cov(y, z)²) · √(var z / var x)

    Moments: number, x, y, z, xx, yy, zz, xy, xz, yz. 0 where x does not vary.
    """
    number, *rest = np.moveaxis(moments, -1, 0)
    x, y, z, xx, yy, zz, xy, xz, yz = (moment / number for moment in rest)
    var_x, var_y, var_z = _no_rounding(xx - x**2, xx), yy - y**2, zz - z**2
    cov_xy, cov_xz, cov_yz = xy - x * y, xz - x * z, yz - y * z
    slope = (cov_xz * var_y - cov_xy * cov_yz) / (var_y * var_z - cov_yz**2)
    return np.where(var_x == 0, 0.0, slope * np.sqrt(var_z / var_x))


def calibration(moments: Floats) -> Floats:
    """Computes cov(x, y) / var x: by how much y moves where x moves by 1."""
    at = Spread(moments)
    return at.cov / at.var_x


def intercept(moments: Floats) -> Floats:
    """Computes what y is on average where x is 0, on the straight line of ``calibration``."""
    at = Spread(moments)
    return at.y - at.cov / at.var_x * at.x


def explained(moments: Floats) -> Floats:
    """Computes 1 − var(y − x) / var y."""
    at = Spread(moments)
    return (2 * at.cov - at.var_x) / at.var_y


def relative_error(moments: Floats) -> Floats:
    """Computes E(x − y)² / var y."""
    at = Spread(moments)
    return (at.xx - 2 * at.xy + at.yy) / at.var_y


def offset(moments: Floats) -> Floats:
    """Computes E(x − y)."""
    at = Spread(moments)
    return at.x - at.y


def _no_rounding(variance: Floats, size: Floats) -> Floats:
    """Returns a variance that is exactly 0 where rounding is all that is left."""
    return np.where(variance <= 1e-14 * size, 0.0, variance)
