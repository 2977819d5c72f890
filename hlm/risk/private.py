"""Risk curves under differential privacy, and thresholds that keep their guarantee all the same.

What a client sends
-------------------
The unit of protection is a client: all its prompts of a round. Each counts m prompts, a number
the settings fix; where it has fewer, alpha stands for the risk of each missing one, at every
threshold, so that no count has to be told. The risk curve of m prompts rises from 0 to at most
m B. Its increments h over the grid are not negative and sum to at most m B, so h lies in m B times
the simplex with corners 0, e_1 .. e_G. Sent is ``C h + noise`` and read is
``C (C h + noise) = A h + C noise``, where ``A = C C`` is the lower triangle of ones that adds
increments up to the curve and C its square root, a Toeplitz matrix of 1, 1/2, 3/8, 5/16 ... (the
square-root mechanism of sums under continual observation, Fichtenberger, Henzinger and Upadhyay,
arXiv 2202.11205). Largest standard deviation of the curve that is read, per noise multiplier and
prompt, when one client is replaced by any other, 64 thresholds: 2.96 this way; 8.0 for noise on
the curve itself, whose 64 entries all change; 11.3 for noise on h, 64 of which are added up.

Why noise makes a threshold careful and never wrong
---------------------------------------------------
S(g) is the sum of true risks at grid point g, n the prompts, Y(g) = S(g) + N(g) what is read, N(g)
normal with mean 0 and *known* deviation s(g), independent of all texts. The alphas
of missing prompts loosen neither rule: both compare S with at most alpha n.

:func:`private_conformal_threshold`. Let T be the threshold of conformal risk control at level
``alpha - eta B`` without noise, and g* the first grid point where it fails; both depend on texts
only. The rule goes up the grid while ``Y + q s <= (alpha - eta B) (n + 1) - B``,
``P(normal < -q) = eta``, and stops where that fails. It passes g* only if N(g*) < -q s(g*), so with
probability at most eta; else its threshold is at most T. A prompt's risk R rises with the threshold
and is at most B: ``E[R] <= E[R(T)] + eta B <= alpha``. One point decides, so one point's quantile
is enough and the grid's size costs nothing. eta is chosen from public numbers only.

:func:`private_learn_then_test`. If F(x) bounds ``P(S(g) <= x)`` for every distribution of risk
above alpha (Hoeffding-Bentkus), then ``P(Y(g) <= y) = E[P(S(g) <= y - N)] <= E[F(y - N)] =:
F'(y)``. F' does not fall, so F'(Y(g)) is a p-value: the old one averaged over the noise.
Fixed-sequence testing at delta then gives P(risk <= alpha) >= 1 - delta, texts and noise together.

Both walk up the grid and stop at the first point that fails, so every point on the way is a chance
for noise to stop them early. Where noise is loud, a fixed part of the grid is tested; which part
follows from public numbers, and the proofs hold for any part.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from hlm.arrays import FloatArray
from hlm.risk.control import ESCALATE_ALL, hoeffding_bentkus
from hlm.risk.curves import require_grid

_SLACK = 1e-9
_FAR = 12.0
"""Standard deviations beyond which a value is no noise: exceeded once in 10^32 times."""

_STEPS = ((5.0, 1), (3.0, 4), (0.0, 16))
"""Every how manieth grid point is tested, from which ratio of alpha n to the noise on."""

_NORMAL = NormalDist()
_EDGES = np.linspace(-7.0, 7.0, 281)


@lru_cache(maxsize=8)
def square_root_sums(points: int) -> FloatArray:
    """C float64 [points, points], lower triangular, whose square is all ones below the diagonal."""
    if points < 1:
        raise ValueError(f"points: {points}; allowed: >= 1")
    steps = np.arange(1, points)
    column = np.concatenate([[1.0], np.cumprod((2 * steps - 1) / (2 * steps))])
    lag = np.subtract.outer(np.arange(points), np.arange(points))
    root = np.where(lag >= 0, column[np.maximum(lag, 0)], 0.0)
    root.setflags(write=False)
    return root


@lru_cache(maxsize=8)
def curve_sensitivity(points: int) -> float:
    """Largest L2 distance of C h and C h', h and h' with entries >= 0 that sum to at most 1.

    A distance is convex, so it is largest between two corners: two columns of C, or one and 0.
    """
    corners = np.concatenate([square_root_sums(points).T, np.zeros((1, points))])
    squares = (corners**2).sum(axis=1)
    distances = squares[:, None] + squares[None] - 2 * corners @ corners.T
    return float(np.sqrt(distances.max()))


@dataclass(frozen=True)
class NoisyCurve:
    """A pooled risk curve with noise of known size.

    Attributes
    ----------
    risk : float64 [G]
        Summed risk and noise at each grid point; may be negative and need not rise.
    deviation : float64 [G]
        Standard deviation of the noise there.
    prompts : int
        n, the ones that alpha stands for included.
    """

    risk: FloatArray
    deviation: FloatArray
    prompts: int


@dataclass(frozen=True)
class CurveRelease:
    """How risk curves of clients are encoded, noised, added up and read.

    A vector is float64 [2 + G]: prompts, number of noises in it, and C h. Vectors add up.

    Parameters
    ----------
    points : int
        G >= 1, thresholds of the grid.
    prompts : int
        m >= 1, prompts a client counts in one release.
    bound : float
        B, the largest possible risk of one prompt, >= 1.
    alpha : float
        In (0, 1): risk that stands for a missing prompt.
    noise_multiplier : float
        z > 0, see `hlm.privacy.gaussian_epsilon`: one release costs gaussian_epsilon(z, 1, delta).
    """

    points: int
    prompts: int
    bound: float
    alpha: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        for name, good, allowed in (
            ("points", self.points >= 1, ">= 1"),
            ("prompts", self.prompts >= 1, ">= 1"),
            ("bound", 1 <= self.bound < np.inf, "finite and >= 1"),
            ("alpha", 0 < self.alpha < 1, "(0, 1)"),
            ("noise_multiplier", 0 < self.noise_multiplier < np.inf, "finite and > 0"),
        ):
            if not good:
                raise ValueError(f"{name}: {getattr(self, name)}; allowed: {allowed}")

    @property
    def length(self) -> int:
        """Numbers of a vector."""
        return 2 + self.points

    @property
    def sensitivity(self) -> float:
        """Largest L2 change of a sum of vectors when one client is replaced, in prompts."""
        return self.prompts * self.bound * curve_sensitivity(self.points)

    def encode(self, risk: FloatArray, prompts: float) -> FloatArray:
        """One client's vector without noise.

        Parameters
        ----------
        risk : float64 [G]
            Summed risk of its prompts on the grid.
        prompts : float
            How many they are, at most m.

        Raises
        ------
        ValueError
            If the curve falls, or exceeds what so many prompts can lose: no sensitivity would
            hold for it.
        """
        curve = np.asarray(risk, dtype=np.float64)
        steps = np.diff(curve, prepend=0.0)
        if curve.shape != (self.points,) or not (steps >= -_SLACK).all():
            raise ValueError(f"risk: must be {self.points} numbers that never fall, from 0 on")
        if not 0 <= prompts <= self.prompts or curve[-1] > prompts * self.bound + _SLACK:
            raise ValueError(
                f"risk: {curve[-1]} of {prompts} prompts; allowed: at most {self.prompts} prompts "
                f"with a risk of at most {self.bound} each"
            )
        steps = np.maximum(steps, 0.0)
        steps[0] += (self.prompts - prompts) * self.alpha
        # Rounding must not carry a client beyond the bound the noise is made for.
        steps *= min(1.0, self.prompts * self.bound / max(float(steps.sum()), _SLACK))
        return np.concatenate([[self.prompts, 0.0], square_root_sums(self.points) @ steps])

    def add_noise(self, vector: FloatArray, generator: np.random.Generator) -> FloatArray:
        """`vector` with one noise more; `generator` must be unknown to whoever gets to see it."""
        scale = self.noise_multiplier * self.sensitivity
        noise = generator.normal(0.0, scale, self.points)
        return np.asarray(vector + np.concatenate([[0.0, 1.0], noise]), dtype=np.float64)

    def problem(self, vector: FloatArray, noises: int) -> str:
        """What is impossible about one client's vector with `noises` noises; empty if nothing."""
        if vector.shape != (self.length,) or not np.isfinite(vector).all():
            return f"must be {self.length} finite numbers"
        if vector[0] != self.prompts or vector[1] != noises:
            return f"{vector[0]:g} prompts, {vector[1]:g} noises; must be {self.prompts}, {noises}"
        root = square_root_sums(self.points)
        far = _FAR * self.noise_multiplier * self.sensitivity * noises + _SLACK
        most = self.prompts * self.bound * root.max()
        if (vector[2:] < -far).any() or (vector[2:] > most + far).any():
            return f"beyond any curve of {self.prompts} prompts and its noise"
        return ""

    def read(self, vector: FloatArray) -> NoisyCurve:
        """The curve of a sum of vectors."""
        root = square_root_sums(self.points)
        scale = self.noise_multiplier * self.sensitivity * np.sqrt(vector[1])
        return NoisyCurve(
            risk=root @ vector[2:],
            deviation=scale * np.sqrt((root**2).sum(axis=1)),
            prompts=round(float(vector[0])),
        )


def private_conformal_threshold(
    curve: NoisyCurve, grid: FloatArray, alpha: float, bound: float = 1.0
) -> float:
    """Largest threshold with expected risk <= alpha, noise included; see the module's proof.

    Parameters
    ----------
    curve : NoisyCurve
    grid : float64 [G]
        Ascending thresholds.
    alpha : float
        Largest expected risk, in (0, 1).
    bound : float
        B, the largest possible risk of one prompt.

    Returns
    -------
    float
        A grid point, or `ESCALATE_ALL`.
    """
    _check(curve, grid, alpha)
    # Shares of alpha that pay for the noise; the best one for the widest noise of the grid.
    etas = alpha / bound * 0.5 ** np.arange(1, 31)
    quantiles = -np.array([_NORMAL.inv_cdf(eta) for eta in etas])
    limits = (alpha - etas * bound) * (curve.prompts + 1) - bound
    best = int(np.argmax(limits - quantiles * curve.deviation.max()))
    upper = curve.risk + quantiles[best] * curve.deviation
    return _last(grid, upper <= limits[best], _step(curve, alpha))


def private_learn_then_test(
    curve: NoisyCurve, grid: FloatArray, alpha: float, delta: float, bound: float = 1.0
) -> float:
    """Largest threshold that passes fixed-sequence tests at delta; see the module's proof.

    Parameters and result are those of `private_conformal_threshold`; `delta` in (0, 1) is the
    probability, over texts and noise, that the risk exceeds alpha.
    """
    _check(curve, grid, alpha)
    if not 0 < delta < 1:
        raise ValueError(f"delta: {delta}; allowed: (0, 1)")
    if curve.prompts < 1:
        return ESCALATE_ALL
    # Noise between two edges counts as the lower one, which makes the p-value larger.
    below = np.array([_NORMAL.cdf(edge) for edge in _EDGES])
    weights = np.diff(below, append=1.0)
    sums = curve.risk[:, None] - curve.deviation[:, None] * _EDGES[None]
    mean = np.clip(sums / (curve.prompts * bound), 0.0, 1.0)
    each = hoeffding_bentkus(mean.ravel(), curve.prompts, min(alpha / bound, 1.0))
    # Risks are not negative: a sum below 0 cannot come about.
    p_values = below[0] + np.where(sums < -_SLACK, 0.0, each.reshape(sums.shape)) @ weights
    return _last(grid, p_values <= delta, _step(curve, alpha))


def _step(curve: NoisyCurve, alpha: float) -> int:
    """Every how manieth grid point is tested; nothing but public numbers decide."""
    loudest = float(curve.deviation.max())
    step = next(s for ratio, s in _STEPS if alpha * curve.prompts >= ratio * loudest)
    return min(step, len(curve.risk))


def _last(grid: FloatArray, allowed: NDArray[np.bool_], step: int) -> float:
    """Last tested grid point before the first that is not allowed."""
    points, passes = grid[step - 1 :: step], allowed[step - 1 :: step]
    passing = len(points) if passes.all() else int(np.argmin(passes))
    return float(points[passing - 1]) if passing else ESCALATE_ALL


def _check(curve: NoisyCurve, grid: FloatArray, alpha: float) -> None:
    require_grid(grid)
    if curve.risk.shape != grid.shape or not np.isfinite(curve.risk).all():
        raise ValueError(f"risk: must be finite with shape {grid.shape}, not {curve.risk.shape}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: {alpha}; allowed: (0, 1)")
