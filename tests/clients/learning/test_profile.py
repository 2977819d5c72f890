import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from clients.learning.profile import (
    HEADER,
    Profile,
    ProfileError,
    ProfileSettings,
)
from clients.learning.profile_making import make_profile, token_sketch
from hlm.privacy import gaussian_epsilon

SMALL = ProfileSettings(dims=5, bins=4, rows=3)
VOCAB = 50


def texts_and_entropies(prompts, seed=0):
    generator = np.random.default_rng(seed)
    texts = [generator.integers(0, VOCAB, generator.integers(1, 9)) for _ in range(prompts)]
    return texts, [generator.random(generator.integers(1, 7)) for _ in range(prompts)]


def sketch_of(settings, seed=1):
    return token_sketch(np.random.default_rng(seed).normal(size=(VOCAB, 12)), settings)


def profile_of(settings=SMALL, prompts=7, seed=0):
    generator = np.random.default_rng(seed)
    return make_profile(
        *texts_and_entropies(prompts, seed), sketch_of(settings), settings, generator
    )


def test_statistics_equal_a_plain_loop():
    settings = replace(SMALL, rows=20, clip=0.4)
    texts, entropies = texts_and_entropies(9)
    sketch = sketch_of(settings)
    profile = make_profile(texts, entropies, sketch, settings, np.random.default_rng(0))

    def clip(vector, most):
        return vector * min(1.0, most / np.linalg.norm(vector))

    means, squares, histograms, rows = [], [], [], []
    for text, entropy in zip(texts, entropies, strict=True):
        means.append(clip(np.mean([sketch[token] for token in text], axis=0), 0.4))
        squares.append(clip(np.mean([sketch[token] ** 2 for token in text], axis=0), 0.16))
        histograms.append(np.histogram(entropy, 4, (0, 1))[0] / len(entropy))
        rows.append(np.append(means[-1], entropy.mean()))
    assert np.linalg.norm(means, axis=1).max() == pytest.approx(0.4), "the clip must bite"
    np.testing.assert_allclose(profile.mean, np.mean(means, axis=0), atol=1e-12)
    np.testing.assert_allclose(profile.square, np.mean(squares, axis=0), atol=1e-12)
    np.testing.assert_allclose(profile.histogram, np.mean(histograms, axis=0), atol=1e-12)
    np.testing.assert_allclose(profile.rows, rows, atol=1e-12)
    assert profile.prompts == 9


def test_variance_is_that_of_the_tokens():
    settings = replace(SMALL, clip=100.0)
    texts, entropies = texts_and_entropies(6)
    texts = [np.arange(start, start + 8) for start in range(6)]
    sketch = sketch_of(settings)
    profile = make_profile(texts, entropies, sketch, settings, np.random.default_rng(0))
    np.testing.assert_allclose(profile.variance, sketch[np.concatenate(texts)].var(axis=0))


def test_an_entropy_of_one_falls_into_the_last_bin():
    texts = [np.array([1])]
    profile = make_profile(
        texts, [np.array([1.0, 0.0])], sketch_of(SMALL), SMALL, np.random.default_rng(0)
    )
    np.testing.assert_array_equal(profile.histogram, [0.5, 0, 0, 0.5])


def test_sketch_is_scaled_and_keeps_distances_on_average():
    wide = replace(SMALL, dims=1024)
    embeddings = np.random.default_rng(3).normal(loc=2.0, size=(VOCAB, 64)) * 7
    sketch = token_sketch(embeddings, wide)
    # Relative error of a squared norm is sqrt(2 / 1024) = 4.4 %; 30 % is 6.8 deviations.
    assert (sketch**2).sum(axis=1).mean() == pytest.approx(1.0, rel=0.1)
    centred = embeddings - embeddings.mean(axis=0)
    scale = (centred**2).sum(axis=1).mean()
    for one, other in ((0, 1), (2, 3), (4, 5)):
        expected = ((centred[one] - centred[other]) ** 2).sum() / scale
        assert ((sketch[one] - sketch[other]) ** 2).sum() == pytest.approx(expected, rel=0.3)


def test_the_seed_decides_the_sketch():
    np.testing.assert_array_equal(sketch_of(SMALL), sketch_of(SMALL))
    assert not np.allclose(sketch_of(SMALL), sketch_of(replace(SMALL, seed=1)))


@given(prompts=st.integers(1, 12), rows=st.integers(0, 6), seed=st.integers(0, 99))
@limits(max_examples=40, deadline=None)
def test_array_round_trip(prompts, rows, seed):
    settings = ProfileSettings(dims=3, bins=5, rows=rows, noise_multiplier=seed % 2 * 0.5)
    profile = profile_of(settings, prompts, seed)
    array = profile.to_array(settings)
    assert array.dtype == np.float32 and array.shape == (settings.length,)
    back = Profile.from_array(array, settings)
    for name in ("mean", "square", "histogram", "rows"):
        np.testing.assert_allclose(getattr(back, name), getattr(profile, name), rtol=1e-6)
    assert back.prompts == prompts and len(back.rows) == min(rows, prompts)
    np.testing.assert_array_equal(back.to_array(settings), array)


def test_what_leaves_is_only_averages_and_a_bounded_number_of_rows():
    array = profile_of(prompts=500).to_array(SMALL)
    assert array.size == len(HEADER) + 2 * 5 + 4 + 3 * 6
    assert ProfileSettings().length * 4 == 4568


def damaged(place, value):
    array = profile_of().to_array(SMALL)
    array[place] = value
    return array


MEAN, HISTOGRAM, ROWS = len(HEADER), len(HEADER) + 10, len(HEADER) + 14


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (damaged(MEAN + 2, np.nan), r"profile\[8\]: nan"),
        (damaged(ROWS, np.inf), "inf"),
        (damaged(MEAN, 1e30), r"profile\.mean"),
        (damaged(MEAN + 5, 1.5), r"profile\.square"),
        (damaged(HISTOGRAM, -0.1), r"profile\.histogram"),
        (damaged(HISTOGRAM, 0.999), r"profile\.histogram: sum"),
        (damaged(ROWS + 1, -2.0), r"profile\.rows"),
        (damaged(ROWS + 5, 1.2), r"profile\.rows"),
        (damaged(0, 2), r"profile\.version: 2; allowed: 1"),
        (damaged(1, 6), r"profile\.dims: 6; allowed: 5"),
        (damaged(2, 5), r"profile\.bins"),
        (damaged(3, 4), r"profile\.rows: 4"),
        (damaged(3, 2.5), r"profile\.rows: 2\.5"),
        (damaged(3, 2), "past row 2"),
        (damaged(4, 0), r"profile\.prompts: 0"),
        (damaged(4, 2), r"profile\.rows: 3; allowed: at most prompts, 2"),
        (damaged(5, 1.0), r"profile\.noise multiplier: 1; allowed: 0"),
        (profile_of().to_array(SMALL)[:-1], r"shape \(37,\); allowed: \(38,\)"),
        (profile_of().to_array(SMALL)[None], "shape"),
        (profile_of().to_array(SMALL).astype(np.int64), "dtype int64"),
    ],
)
def test_bad_arrays_are_refused_and_say_why(array, message):
    with pytest.raises(ProfileError, match=message):
        Profile.from_array(array, SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": []}, "texts, entropies: 0 and 2"),
        ({"texts": [np.array([1]), np.array([], np.int64)]}, r"texts\[1\]: empty"),
        ({"texts": [np.array([1]), np.array([VOCAB])]}, "allowed: 0 to 49"),
        ({"entropies": [np.array([0.5]), np.array([np.nan])]}, "entropies"),
        ({"entropies": [np.array([0.5]), np.array([1.01])]}, "entropies"),
        ({"sketch": np.zeros((VOCAB, 4))}, "sketch"),
    ],
)
def test_bad_work_is_refused(change, message):
    work = {
        "texts": [np.array([1]), np.array([2])],
        "entropies": [np.array([0.5]), np.array([0.1])],
        "sketch": sketch_of(SMALL),
    } | change
    with pytest.raises(ProfileError, match=message):
        make_profile(**work, settings=SMALL, generator=np.random.default_rng(0))


@pytest.mark.parametrize(
    "field",
    [
        {"dims": 0},
        {"bins": 2000},
        {"rows": -1},
        {"clip": 0.0},
        {"clip": math.inf},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.nan},
        {"delta": 1.0},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_refused(field):
    with pytest.raises(ProfileError, match=next(iter(field))):
        replace(SMALL, **field)


def test_embeddings_without_information_are_refused():
    with pytest.raises(ProfileError, match="all tokens equal"):
        token_sketch(np.ones((4, 3)), SMALL)
    with pytest.raises(ProfileError, match="finite"):
        token_sketch(np.full((4, 3), np.nan), SMALL)


# ---- Noise ----


@pytest.mark.parametrize("rows", [0, 3])
@given(seed=st.integers(0, 10_000), clip=st.floats(0.05, 2.0), prompts=st.integers(1, 6))
@limits(max_examples=150, deadline=None)
def test_no_change_of_one_prompt_exceeds_the_sensitivities(rows, seed, clip, prompts):
    settings = replace(SMALL, rows=rows, clip=clip)
    texts, entropies = texts_and_entropies(prompts, seed)
    other, other_entropies = texts_and_entropies(1, seed + 1)
    changed = seed % prompts
    sketch = sketch_of(settings) * 3
    profiles = [make_profile(texts, entropies, sketch, settings, np.random.default_rng(seed))]
    texts[changed], entropies[changed] = other[0], other_entropies[0]
    profiles.append(make_profile(texts, entropies, sketch, settings, np.random.default_rng(seed)))
    for name, bound in settings.sensitivities(prompts).items():
        moved = np.linalg.norm(getattr(profiles[0], name) - getattr(profiles[1], name))
        assert moved <= bound + 1e-12, name


@pytest.mark.parametrize("rows", [0, 32])
def test_the_whole_profile_is_one_gaussian_release_of_multiplier_z(rows):
    settings = ProfileSettings(rows=rows, noise_multiplier=1.7, clip=0.6)
    noise, moved = settings.noise(40), settings.sensitivities(40)
    assert set(noise) == set(moved)
    assert sum((moved[b] / noise[b]) ** 2 for b in noise) == pytest.approx(1.7**-2)


def test_epsilon_is_the_stated_formula():
    settings = replace(SMALL, noise_multiplier=2.0, delta=1e-6)
    mu, epsilon = math.sqrt(3) / 2, settings.epsilon(3)
    normal = NormalDist()
    left = normal.cdf(mu / 2 - epsilon / mu)
    assert left - math.exp(epsilon) * normal.cdf(-mu / 2 - epsilon / mu) == pytest.approx(1e-6)
    assert settings.epsilon(1) == gaussian_epsilon(2.0, 1, 1e-6)
    assert SMALL.epsilon() == math.inf and SMALL.epsilon(0) == 0.0


def test_noise_has_the_stated_deviation():
    settings = ProfileSettings(dims=1000, bins=1, rows=2, noise_multiplier=0.8)
    texts, entropies = texts_and_entropies(4)
    sketch = token_sketch(np.random.default_rng(1).normal(size=(VOCAB, 12)), settings)
    clean = make_profile(
        texts, entropies, sketch, replace(settings, noise_multiplier=0.0), np.random.default_rng(5)
    )
    noisy = make_profile(texts, entropies, sketch, settings, np.random.default_rng(5))
    for name in ("mean", "square", "rows"):
        found = (getattr(noisy, name) - getattr(clean, name)).std()
        # 1,000 or more values: a relative deviation of 2.2 %; 12 % is 5.4 of them (1e-7).
        assert found == pytest.approx(settings.noise(4)[name], rel=0.12), name
    assert Profile.from_array(noisy.to_array(settings), settings).noise_multiplier == 0.8
    with pytest.raises(ProfileError, match=r"profile\.noise multiplier"):
        Profile.from_array(noisy.to_array(settings), replace(settings, noise_multiplier=0.0))


def test_a_noisy_profile_beyond_what_noise_can_do_is_refused():
    settings = replace(SMALL, noise_multiplier=0.1)
    array = profile_of(settings).to_array(settings)
    array[MEAN] = settings.clip + 13 * settings.noise(7)["mean"]
    with pytest.raises(ProfileError, match=r"profile\.mean"):
        Profile.from_array(array, settings)
