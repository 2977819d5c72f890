"""How a client makes its profile (`clients.learning.profile`) of its texts and its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clients.learning.profile import MOST_PROMPTS, Profile, ProfileError, ProfileSettings
from hlm.arrays import FloatArray, IntArray


def token_sketch(embeddings: NDArray[np.floating], settings: ProfileSettings) -> FloatArray:
    """Project a model's input embeddings to a few dimensions.

    Centred over the vocabulary and scaled to a root-mean-square norm of 1, so that `clip` means
    the same for every model, then multiplied by a Gaussian matrix with variance 1/dims, which
    keeps norms and angles on average (Johnson and Lindenstrauss). Model and seed are public: this
    depends on nobody's data.

    Parameters
    ----------
    embeddings : numpy.ndarray
        Float [vocab, size].
    settings : ProfileSettings

    Returns
    -------
    float64 [vocab, dims].
    """
    table = np.asarray(embeddings, np.float64)
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise ProfileError(f"embeddings: shape {table.shape}; allowed: [vocab, size], finite")
    table = table - table.mean(axis=0)
    scale = math.sqrt(float((table**2).sum(axis=1).mean()))
    if scale == 0:
        raise ProfileError("embeddings: all tokens equal; allowed: some difference")
    projection = np.random.default_rng([settings.seed, 11]).normal(
        scale=1.0 / math.sqrt(settings.dims), size=(table.shape[1], settings.dims)
    )
    return np.asarray(table / scale @ projection, np.float64)


def make_profile(
    texts: Sequence[IntArray],
    entropies: Sequence[FloatArray],
    sketch: FloatArray,
    settings: ProfileSettings,
    generator: np.random.Generator,
) -> Profile:
    """Make a client's profile from its prompts.

    Parameters
    ----------
    texts : sequence of numpy.ndarray
        int64 [length_i >= 1] token ids of a prompt, what was drafted for it included.
    entropies : sequence of numpy.ndarray
        float [steps_i >= 1], `hlm.uncertainty.entropy` of the SLM's steps on it, in [0, 1].
    sketch : numpy.ndarray
        float64 [vocab, dims], of `token_sketch`.
    settings : ProfileSettings
    generator : numpy.random.Generator
        Draws the rows and the noise. With noise the server must not know its seed.

    Raises
    ------
    ProfileError
        On no prompt, an empty one, an id out of the vocabulary, or an entropy out of [0, 1].
    """
    means, squares, histograms, mean_entropies = _per_prompt(texts, entropies, sketch, settings)
    prompts = min(len(texts), MOST_PROMPTS)
    chosen = np.sort(generator.permutation(len(texts))[: settings.rows])
    blocks = {
        "mean": means.mean(axis=0),
        "square": squares.mean(axis=0),
        "histogram": histograms.mean(axis=0),
        "rows": np.column_stack([means, mean_entropies])[chosen],
    }
    if settings.noise_multiplier:
        for name, deviation in settings.noise(prompts).items():
            blocks[name] = blocks[name] + generator.normal(0.0, deviation, blocks[name].shape)
        # Clamping needs nothing but the noisy value, so it costs no privacy.
        blocks["histogram"] = np.clip(blocks["histogram"], 0.0, 1.0)
    return Profile(prompts=prompts, noise_multiplier=settings.noise_multiplier, **blocks)


def _per_prompt(
    texts: Sequence[IntArray],
    entropies: Sequence[FloatArray],
    sketch: FloatArray,
    settings: ProfileSettings,
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Clipped means and squares [n, dims], histograms [n, bins] and mean entropies [n]."""
    if not texts or len(texts) != len(entropies):
        raise ProfileError(
            f"texts, entropies: {len(texts)} and {len(entropies)}; allowed: as many, at least 1"
        )
    if sketch.ndim != 2 or sketch.shape[1] != settings.dims:
        raise ProfileError(f"sketch: shape {sketch.shape}; allowed: [vocab, {settings.dims}]")
    lengths = np.array([len(text) for text in texts])
    steps = np.array([len(entropy) for entropy in entropies])
    for name, counts in (("texts", lengths), ("entropies", steps)):
        if counts.min() == 0:
            raise ProfileError(f"{name}[{counts.argmin()}]: empty; allowed: at least one value")
    tokens = np.concatenate(texts)
    if tokens.min() < 0 or tokens.max() >= len(sketch):
        raise ProfileError(
            f"texts: ids {tokens.min()} to {tokens.max()}; allowed: 0 to {len(sketch) - 1}"
        )
    values = np.concatenate(entropies).astype(np.float64)
    if not bool(np.all((values >= 0) & (values <= 1))):
        raise ProfileError("entropies: a value outside [0, 1] or NaN; allowed: [0, 1]")
    vectors = sketch[tokens]
    starts = np.append(0, lengths.cumsum()[:-1])
    means = np.add.reduceat(vectors, starts) / lengths[:, None]
    squares = np.add.reduceat(vectors**2, starts) / lengths[:, None]
    prompt = np.repeat(np.arange(len(texts)), steps)
    bins = np.minimum((values * settings.bins).astype(np.int64), settings.bins - 1)
    cells = np.bincount(prompt * settings.bins + bins, minlength=len(texts) * settings.bins)
    histograms = cells.reshape(len(texts), settings.bins) / steps[:, None]
    mean_entropies = np.bincount(prompt, weights=values) / steps
    clip = settings.clip
    return _clipped(means, clip), _clipped(squares, clip**2), histograms, mean_entropies


def _clipped(rows: FloatArray, most: float) -> FloatArray:
    """Scale every row to an L2 norm of at most `most`."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows * (most / np.maximum(norms, most)), np.float64)
