"""The space in which clients are compared and late ones are placed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hlm.arrays import FloatArray, IntArray

# Share of the off-diagonal covariance that is given up: keeps it invertible with few prompts.
SHRINKAGE = 0.1
# Total variance of each block beside the mean's 1. On AG News the variance and the histogram say
# little that the mean does not; where prompts are few and short, weight 1 for them halves the
# adjusted Rand index.
BLOCK_WEIGHTS = {"location": 1.0, "spread": 0.25, "entropies": 0.25}


class ClientProfile(Protocol):
    """What clustering needs to know of a client.

    Attributes
    ----------
    mean, variance : float64 [dims]
        Of the client's projected token embeddings.
    histogram : float64 [bins]
        Shares of normalised entropy over [0, 1].
    rows : float64 [n, dims + 1]
        Samples: mean embedding and mean entropy of single prompts. May be empty.
    prompts : int
        How many prompts were averaged, >= 1.
    """

    @property
    def mean(self) -> FloatArray: ...  # noqa: D102
    @property
    def variance(self) -> FloatArray: ...  # noqa: D102
    @property
    def histogram(self) -> FloatArray: ...  # noqa: D102
    @property
    def rows(self) -> FloatArray: ...  # noqa: D102
    @property
    def prompts(self) -> int: ...  # noqa: D102


class ProfileError(ValueError):
    """Profiles that cannot be clustered; names the profile, the value and what is allowed."""


def check_profiles(profiles: Sequence[ClientProfile]) -> None:
    """Refuse profiles that are not finite or not shaped like the first one.

    Raises
    ------
    ProfileError
        Naming the place in `profiles`.
    """
    for place, profile in enumerate(profiles):
        first = profiles[0]
        for name in ("mean", "variance", "histogram", "rows"):
            value, like = getattr(profile, name), getattr(first, name)
            columns = like.shape[1:] if name == "rows" else like.shape
            if (value.shape[1:] if name == "rows" else value.shape) != columns or (
                value.ndim != like.ndim
            ):
                raise ProfileError(
                    f"profiles[{place}].{name}: shape {value.shape}; allowed: that of "
                    f"profiles[0], {like.shape}"
                )
            if not np.isfinite(value).all():
                raise ProfileError(f"profiles[{place}].{name}: NaN or infinite; allowed: finite")
        if profile.rows.ndim != 2 or profile.rows.shape[1] != len(profile.mean) + 1:
            raise ProfileError(
                f"profiles[{place}].rows: shape {profile.rows.shape}; allowed: "
                f"[n, {len(profile.mean) + 1}]"
            )


def content_order(profiles: Sequence[ClientProfile]) -> IntArray:
    """Order by content, int64 [clients]: results then don't depend on who is listed first."""

    def key(place: int) -> tuple[bytes, ...]:
        profile = profiles[place]
        parts = (profile.mean, profile.variance, profile.histogram, profile.rows)
        return tuple(np.ascontiguousarray(part, np.float64).tobytes() for part in parts)

    return np.array(sorted(range(len(profiles)), key=key), np.int64)


def within_covariance(rows: FloatArray, owners: IntArray) -> FloatArray | None:
    """Covariance of single prompts around their client's mean, shrunk towards its diagonal.

    Parameters
    ----------
    rows : float64 [n, d]
    owners : int64 [n]
        Client of each row.

    Returns
    -------
    float64 [d, d], or None where there are too few rows (under 2 d degrees of freedom).
    """
    width = rows.shape[1]
    clients, owners = np.unique(owners, return_inverse=True)
    freedom = len(rows) - len(clients)
    if freedom < 2 * width:
        return None
    residuals = rows - client_means(rows, owners, len(clients))[owners]
    covariance = residuals.T @ residuals / freedom
    diagonal = np.maximum(np.diag(covariance), 1e-12)
    shrunk = (1.0 - SHRINKAGE) * covariance
    shrunk[np.diag_indices(width)] = diagonal
    return np.asarray(shrunk, np.float64)


def client_means(rows: FloatArray, owners: IntArray, clients: int) -> FloatArray:
    """Mean row of each client, float64 [clients, d]; 0 where it has none."""
    sums = np.zeros((clients, rows.shape[1]))
    np.add.at(sums, owners, rows)
    counts = np.bincount(owners, minlength=clients)
    return np.asarray(sums / np.maximum(counts, 1)[:, None], np.float64)


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """Maps a profile to features: whitened mean and mean entropy, spread, entropy histogram.

    The mean is measured against how much a client's own prompts differ (Mahalanobis), which
    matters more than anything else where prompts are short: whitening takes the adjusted Rand
    index from about .5 to .8. Without rows to learn that from, it is left as it is.

    Attributes
    ----------
    whitening : float64 [dims + 1, dims + 1]
    centre, scale : float64 [features]
        A feature is (raw - centre) * scale.
    """

    whitening: FloatArray
    centre: FloatArray
    scale: FloatArray

    @classmethod
    def fit(cls, profiles: Sequence[ClientProfile]) -> FeatureSpace:
        """Learn the space from the profiles to be clustered (at least one)."""
        rows = np.concatenate([profile.rows for profile in profiles])
        owners = np.repeat(np.arange(len(profiles)), [len(profile.rows) for profile in profiles])
        covariance = within_covariance(rows, owners)
        width = len(profiles[0].mean) + 1
        if covariance is None:
            whitening = np.eye(width)
        else:
            sizes, axes = np.linalg.eigh(covariance)
            whitening = axes / np.sqrt(np.maximum(sizes, 1e-12))
        raw = [_blocks(profile, whitening) for profile in profiles]
        centres, scales = [], []
        for name, weight in BLOCK_WEIGHTS.items():
            block = np.stack([blocks[name] for blocks in raw])
            total = float(block.var(axis=0).sum())
            centres.append(block.mean(axis=0))
            scales.append(np.full(block.shape[1], np.sqrt(weight / total) if total > 0 else 0.0))
        return cls(whitening, np.concatenate(centres), np.concatenate(scales))

    def transform(self, profiles: Sequence[ClientProfile]) -> FloatArray:
        """Features of profiles, float64 [clients, features]."""
        raw = [
            np.concatenate(list(_blocks(profile, self.whitening).values())) for profile in profiles
        ]
        return (np.stack(raw) - self.centre) * self.scale

    def state_dict(self) -> dict[str, FloatArray]:
        """Arrays from which `from_state` makes the same space."""
        return {"whitening": self.whitening, "centre": self.centre, "scale": self.scale}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> FeatureSpace:
        """Make the space of a `state_dict`."""
        return cls(state["whitening"], state["centre"], state["scale"])


def _blocks(profile: ClientProfile, whitening: FloatArray) -> dict[str, FloatArray]:
    """Unscaled features in the order of BLOCK_WEIGHTS."""
    bins = len(profile.histogram)
    entropy = float(profile.histogram @ ((np.arange(bins) + 0.5) / bins))
    return {
        "location": np.append(profile.mean, entropy) @ whitening,
        "spread": np.sqrt(np.maximum(profile.variance, 0.0)),
        # Square roots of shares: their distance is Hellinger's, and rare bins don't dominate.
        "entropies": np.sqrt(np.maximum(profile.histogram, 0.0)),
    }
