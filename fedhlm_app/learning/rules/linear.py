"""U-HLM's line (arXiv 2412.12687) from the pooled sums of all clients."""

from __future__ import annotations

from functools import cached_property
from logging import getLogger
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from fedhlm_app.learning.rules.sums import SLACK, SumsRule
from hlm.arrays import FloatArray
from hlm.line import DegenerateLineError, LineSums
from hlm.private_line import LineRelease

if TYPE_CHECKING:
    from clients.learning.feedback import Feedback

LINE = "line-sums"


class Linear(SumsRule):
    """Least squares ``beta = a u + b``, with eq. 3's value on softmax values as beta."""

    name = "linear"
    sets_router = False
    needs_ratio = True
    metric = LINE
    length = 6

    @cached_property
    def release(self) -> LineRelease | None:
        """Noise on the sums of a client's tokens."""
        if self.settings.privacy == "none":
            return None
        tokens = self.settings.tokens_per_round * self.bound
        return LineRelease(tokens, self.settings.privacy_noise)

    def vector(self, feedback: Feedback) -> NDArray[Any]:
        """Sums ``(n, Su, Sb, Suu, Sub, #{y_d < x_d})``, float64 [6] as `hlm.line.LineSums` has it.

        Weights enter every sum, the count included, so that audited tokens stand for the
        unaudited ones they were drawn from.
        """
        known = feedback.select(feedback.known)
        beta, weight = known.ratio_beta, known.weight
        sums = LineSums(
            count=float(weight.sum()),
            uncertainty=float(weight @ known.u),
            rejection=float(weight @ beta),
            uncertainty_squared=float(weight @ known.u**2),
            product=float(weight @ (known.u * beta)),
            lower=float(weight @ known.below),
        )
        return sums.to_array() if self.release is None else self.release.encode(sums)

    def threshold_of(self, vector: FloatArray) -> float:
        """Where the line expects no rejection, or no more than usual."""
        try:
            if self.release is None:
                line = LineSums.from_array(vector).fit()
            else:
                line = self.release.fit(vector)
        except DegenerateLineError as error:
            # Too few tokens, none that tells, or too much noise.
            getLogger("flwr").warning("no line yet, the threshold stays: %s", error)
            return self.settings.initial_threshold
        averse = self.settings.line_threshold == "risk-averse"
        return line.risk_averse if averse else line.risk_prone

    def problem_of_vector(self, vector: FloatArray) -> str:
        """See `SumsRule`."""
        count, u, beta, squares, product, below = vector
        most = self.settings.tokens_per_round * self.bound
        fine = 0 <= squares <= u + SLACK and u <= count + SLACK and 0 <= product <= u + SLACK
        fine = fine and product <= beta + SLACK and beta <= count + SLACK
        fine = fine and count <= most + SLACK and 0 <= below <= count + SLACK
        return "" if fine else f"{LINE!r} is no sum over tokens"
