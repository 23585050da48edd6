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
    there: Bools
    """(B,N) where the completion has such a place."""

    def metric(self, truth: Truth, combine: Combine) -> Estimate:
        """Estimates a function of number, sums and products, see ``Spread``."""
        estimate_BN = np.where(self.there, self.estimate, 0.0)
        true_BHN = np.where(self.there[:, None], self.true, 0.0)
        mean_BN = true_BHN.mean(1)
        products = estimate_BN**2, square(true_BHN), estimate_BN * mean_BN
        return of(truth, combine, self.there, estimate_BN, mean_BN, *products)


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
