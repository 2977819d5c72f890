"""A classifier for every pair of clients, and how well it tells them apart on held-out prompts.

SnapCFL puts clients together that a binary classifier cannot tell apart; FedHLM takes that up for
token-embedding statistics and entropy profiles. It is a classifier two-sample test (Lopez-Paz and
Oquab, arXiv 1610.06545). Here the classifier is a linear discriminant with the within-client
covariance pooled over all clients. Its score of a sample for one client does not depend on the
other client of the pair, so that one product [samples, clients] serves all pairs at once: half a
million classifiers for a thousand clients take a second or two.

Accuracy on few prompts is coarse, so the distance is the held-out mean log-odds, the more
powerful statistic (Cheng and Cloninger, arXiv 1909.11298). For a linear discriminant it is the
cross-validated squared Mahalanobis distance: 0 on average for clients that do not differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hlm.arrays import BoolArray, FloatArray, IntArray
from strategies.clustering.features import client_means, within_covariance

FOLDS = 8


@dataclass(frozen=True, eq=False)
class PairwiseTest:
    """Results of all pairs.

    Attributes
    ----------
    log_odds : numpy.ndarray
        float64 [clients, clients], symmetric: held-out mean log-odds for the right client, summed
        over both; 0 on the diagonal, around 0 (so negative at times) for clients alike.
    accuracy : numpy.ndarray
        float64 [clients, clients], symmetric: balanced held-out accuracy; .5 on the diagonal.
    decisions : numpy.ndarray
        int64 [clients], held-out prompts of each client.
    dims, folds : int
        Length of a sample, and folds of the cross-validation.
    """

    log_odds: FloatArray
    accuracy: FloatArray
    decisions: IntArray
    dims: int
    folds: int

    def told_apart(self, level: float = 0.05) -> BoolArray:
        """Pairs whose log-odds are larger than clients alike would give, bool [clients, clients].

        For clients alike with m and n prompts, s = 1/m + 1/n, d dimensions and F folds, the
        log-odds have mean 0 and variance 2 d s^2 F/(F - 1), and for many folds the
        distribution of s (chi2_d - d); its quantile is used, stretched to that variance. The
        binomial test on the accuracy would not do: cross-validated decisions are not independent,
        and at 5 % it calls one pair in eight different that is not.

        Parameters
        ----------
        level : float
            Chance in (0, 1) to call a pair different that is not.
        """
        if not 0 < level < 1:
            raise ValueError(f"level: {level}; allowed: (0, 1)")
        from scipy import stats

        inverse = 1.0 / self.decisions
        spread = (inverse[:, None] + inverse[None, :]) * np.sqrt(self.folds / (self.folds - 1))
        bound = spread * (stats.chi2.isf(level, self.dims) - self.dims)
        apart = self.log_odds > bound
        np.fill_diagonal(apart, False)
        return np.asarray(apart, np.bool_)


def pairwise_test(samples: list[FloatArray], folds: int = FOLDS) -> PairwiseTest:
    """Cross-validate a linear discriminant for every pair of clients.

    Parameters
    ----------
    samples : list of numpy.ndarray
        Per client float64 [n_i >= 2, d], in an order that says nothing.
    folds : int
        At least 2. Sample k of a client is held out in fold k modulo `folds`; means and
        covariance come from the other folds only.

    Raises
    ------
    ValueError
        On fewer than two samples of a client, or fewer than 2 folds.
    """
    if folds < 2:
        raise ValueError(f"folds: {folds}; allowed: >= 2")
    decisions = np.array([len(rows) for rows in samples], np.int64)
    if not samples or decisions.min() < 2:
        raise ValueError(f"samples: {decisions.tolist()} per client; allowed: at least 2 each")
    clients = len(samples)
    rows = np.concatenate(samples)
    owners = np.repeat(np.arange(clients), decisions)
    fold = np.concatenate([np.arange(count) % folds for count in decisions])
    odds = np.zeros((clients, clients))
    right = np.zeros((clients, clients))
    used = min(folds, int(decisions.max()))
    for held_out in range(used):
        train = fold != held_out
        means = client_means(rows[train], owners[train], clients)
        precision = _precision(rows[train], owners[train])
        weights = means @ precision
        biases = 0.5 * (weights * means).sum(axis=1)
        # Log-odds are linear in the sample, so a client's held-out prompts may be summed first.
        sums = np.zeros_like(means)
        np.add.at(sums, owners[~train], rows[~train])
        totals = sums @ weights.T - np.bincount(owners[~train], minlength=clients)[:, None] * biases
        odds += np.diag(totals)[:, None] - totals
        for block in np.array_split(np.flatnonzero(~train), max(1, clients // 256)):
            scores = rows[block] @ weights.T - biases
            own = scores[np.arange(len(block)), owners[block], None]
            _add_rows(right, owners[block], (own > scores) + 0.5 * (own == scores))
    odds /= decisions[:, None]
    right /= decisions[:, None]
    accuracy = 0.5 * (right + right.T)
    return PairwiseTest(odds + odds.T, accuracy, decisions, rows.shape[1], used)


def _precision(rows: FloatArray, owners: IntArray) -> FloatArray:
    """Inverse within-client covariance; of its diagonal where rows are too few for more."""
    covariance = within_covariance(rows, owners)
    if covariance is not None:
        return np.asarray(np.linalg.inv(covariance), np.float64)
    return np.asarray(np.diag(1.0 / np.maximum(rows.var(axis=0), 1e-12)), np.float64)


def _add_rows(totals: FloatArray, owners: IntArray, values: FloatArray) -> None:
    """Add value rows to their owners' totals; `owners` ascends, so sums of runs will do."""
    present, starts = np.unique(owners, return_index=True)
    totals[present] += np.add.reduceat(values, starts)
