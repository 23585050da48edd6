"""Policy gradients of credit: direction, bias and noise against a reference gradient.

Letters: ``N`` batches, ``D`` parameters, ``H`` independent splits of the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segcredit.credit_audit.metrics.arrays import Floats
from segcredit.credit_audit.metrics.estimates import Estimate, Resampling, estimate
from segcredit.credit_audit.metrics.moments import square
from segcredit.errors import StudyError

Part = slice | NDArray[np.int64] | NDArray[np.bool_]
"""Selection of the D parameters."""


def gradient_metrics(
    gradients: ArrayLike,
    reference: ArrayLike,
    groups: Mapping[str, Part] | None = None,
    *,
    resampling: Resampling | None = None,
) -> dict[str, dict[str, Estimate]]:
    """Compares gradients of batches with a reference gradient r, for all parameters and by group.

    With g a batch's gradient, μ = E g and |r|² the product of different splits of the reference:

    - ``cosine``: E[g · r / |g|] / |r|, that of one batch, its noise included; 0 of a batch whose
      gradient is 0, which leads nowhere. It grows with the size of a batch; compare equal ones.
    - ``projection``: μ · r / |r|². 1 is unbiased along the reference, 0 is blind.
    - ``gradient_noise``: tr Cov(g) / |r|², of one batch. Read it beside the
      projection: a gradient of 0 has 0.
    - ``signal_to_noise``: μ · r / (|r| √(tr Cov(g))). Scale leaves it alone; its inverse square is
      the number of batches whose mean has as much noise as signal. 0 for a gradient of 0.

    Args:
        gradients: (N,D) of independent batches.
        reference: (H,D) splits of the reference that share no sample, or (D,) if it is exact.
        groups: by name, parameters that are judged by themselves, such as a layer's.
        resampling: confidence, number and seed of the draws.

    Returns:
        By group ("all" first), by metric. The unit of intervals is the batch; the noise of the
        reference is common to all and not in them. ``gradient_noise`` and ``signal_to_noise`` are
        means of jackknife pseudo-values, whose bias is O(1/N²).

    Raises:
        StudyError: the arrays do not fit, or a group is called "all".

    Source:
        Pseudo-values: Tukey, 1958, "Bias and confidence in not-quite large samples".
    """
    return metrics_of_moments(
        gradient_moments(gradients, reference, groups), resampling=resampling or Resampling()
    )


def gradient_moments(
    gradients: ArrayLike, reference: ArrayLike, groups: Mapping[str, Part] | None = None
) -> dict[str, dict[str, Floats]]:
    """Computes what ``gradient_metrics`` takes means of: a number a batch, by group, by metric.

    Small enough to be stored, unlike the gradients. Arguments and errors as there.
    """
    gradients_ND = np.asarray(gradients)
    reference_HD = np.atleast_2d(np.asarray(reference))
    if gradients_ND.ndim != 2 or reference_HD.shape[1:] != gradients_ND.shape[1:]:
        raise StudyError(
            f"gradients have shape {gradients_ND.shape} and the reference {reference_HD.shape};"
            " expected (N,D) and (H,D), with the same parameters."
        )
    if "all" in (groups or {}):
        raise StudyError("a group is called 'all', which is what all parameters are called.")
    if len(reference_HD) == 1:
        reference_HD = np.repeat(reference_HD, 2, axis=0)
    parts: dict[str, Part] = {"all": slice(None), **(groups or {})}
    with np.errstate(all="ignore"):
        return {
            name: _moments(
                gradients_ND[:, part].astype(np.float64), reference_HD[:, part].astype(np.float64)
            )
            for name, part in parts.items()
        }


def metrics_of_moments(
    moments: Mapping[str, Mapping[str, ArrayLike]], *, resampling: Resampling
) -> dict[str, dict[str, Estimate]]:
    """Estimates metrics from what ``gradient_moments`` gave, as means over batches."""
    return {
        group: {name: _mean_estimate(name, values, resampling) for name, values in found.items()}
        for group, found in moments.items()
    }


def _mean_estimate(name: str, values: ArrayLike, resampling: Resampling) -> Estimate:
    values_N = np.asarray(values, dtype=np.float64)
    units_N = np.arange(len(values_N))
    return estimate(
        units_N, values_N[:, None], _mean, resampling=resampling, log=name == "gradient_noise"
    )


def _moments(gradients_ND: Floats, reference_HD: Floats) -> dict[str, Floats]:
    """Computes (N,) each metric's number of a batch."""
    along_N = gradients_ND @ reference_HD.mean(0)
    size = float(square(reference_HD[None]).sum())
    squares_N = (gradients_ND**2).sum(1)
    pairs_N = gradients_ND @ gradients_ND.sum(0)

    def noise(without_RN: Floats) -> Floats:
        """Computes (R,) tr Cov of those left: the mean of g · g less that of g · g' over pairs."""
        left_R = len(along_N) - without_RN.sum(1)
        alone_R = squares_N.sum() - without_RN @ squares_N
        all_R = pairs_N.sum() - without_RN @ (2 * pairs_N - squares_N)
        return alone_R / left_R - (all_R - alone_R) / (left_R * (left_R - 1))

    def signal_to_noise(without_RN: Floats) -> Floats:
        left_R = len(along_N) - without_RN.sum(1)
        along_R = (along_N.sum() - without_RN @ along_N) / left_R
        return _over(along_R, np.sqrt(noise(without_RN) * size))

    return {
        "cosine": _over(along_N, np.sqrt(squares_N * size)),
        "projection": along_N / size,
        "gradient_noise": _pseudo_values(noise, len(along_N)) / size,
        "signal_to_noise": _pseudo_values(signal_to_noise, len(along_N)),
    }


def _pseudo_values(statistic: Callable[[Floats], Floats], count: int) -> Floats:
    """Computes (N,) N θ − (N − 1) θ without one batch."""
    whole = statistic(np.zeros((1, count)))
    return count * whole - (count - 1) * statistic(np.eye(count))


def _mean(moments: Floats) -> Floats:
    return moments[..., 0]


def _over(signal_R: Floats, noise_R: Floats) -> Floats:
    """Computes the ratio; 0 where there is no signal."""
    return np.where(signal_R == 0, 0.0, signal_R / noise_R)
