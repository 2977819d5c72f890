from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from hlm.state import state_from_bytes, state_to_bytes
from strategies.cluster_map import ClusterMap, shuffled
from strategies.clustering.features import SHRINKAGE, FeatureSpace, ProfileError, within_covariance
from strategies.clustering.learned import LearnedClusters
from strategies.clustering.methods import (
    METHODS,
    classical_scaling,
    cluster_clients,
    nearest_cluster,
)
from strategies.clustering.pairwise import pairwise_test
from strategies.clustering.reports import adjusted_rand_index, label_mapping, purity
from strategies.clustering.result import ClusterResult

DIMS, BINS = 6, 4
LEARNED = ("classifier", "profile")


@dataclass(frozen=True, eq=False)
class FakeProfile:
    mean: np.ndarray
    variance: np.ndarray
    histogram: np.ndarray
    rows: np.ndarray
    prompts: int = 24


def client(generator, centre, prompts=24, spread=0.3):
    """A client whose prompts lie around `centre`, entropies alike for all."""
    vectors = centre + spread * generator.normal(size=(prompts, DIMS))
    entropies = generator.uniform(0.2, 0.6, size=(prompts, 1))
    histogram = np.histogram(entropies, BINS, (0, 1))[0] / prompts
    rows = np.hstack([vectors, entropies])
    mean, variance = vectors.mean(axis=0), vectors.var(axis=0)
    return FakeProfile(mean, variance, histogram, rows, prompts)


def federation(clients=24, groups=4, gap=0.6, seed=0, prompts=24):
    """Profiles and true groups; centres of groups are `gap` * sqrt(2) apart."""
    generator = np.random.default_rng(seed)
    truth = np.arange(clients) % groups
    return [client(generator, gap * np.eye(DIMS)[group], prompts) for group in truth], truth


@pytest.mark.parametrize("method", LEARNED)
@pytest.mark.parametrize("groups", [2, 3, 5])
def test_known_groups_are_found(method, groups):
    profiles, truth = federation(30, groups)
    result = cluster_clients(profiles, groups, method)
    assert adjusted_rand_index(result.assignment, truth) == 1.0
    assert result.assignment.dtype == np.int64 and result.silhouette > 0.3


@pytest.mark.parametrize("method", LEARNED)
def test_groups_that_overlap_are_still_found(method):
    # Single prompts of two groups are 1.4 within-client deviations apart: a quarter of them is
    # on the wrong side of the best line.
    profiles, truth = federation(40, 4, gap=0.3)
    assert adjusted_rand_index(cluster_clients(profiles, 4, method).assignment, truth) > 0.9


def test_random_clusters_know_nothing_and_are_even():
    _, truth = federation(400, 4)
    first = shuffled(400, 4, 5)
    assert first == shuffled(400, 4, 5) != shuffled(400, 4, 6)
    np.testing.assert_array_equal(np.bincount(first), [100] * 4)
    assert abs(adjusted_rand_index(first, truth)) < 0.05


@pytest.mark.parametrize("method", LEARNED)
@pytest.mark.parametrize("gap", [0.0, 0.25])
def test_same_seed_same_clusters_whatever_the_order(method, gap):
    profiles, _ = federation(21, 3, gap)
    result = cluster_clients(profiles, 3, method, seed=4)
    again = cluster_clients(profiles, 3, method, seed=4)
    order = np.random.default_rng(9).permutation(21)
    shuffled = cluster_clients([profiles[place] for place in order], 3, method, seed=4)
    np.testing.assert_array_equal(result.assignment, again.assignment)
    np.testing.assert_array_equal(shuffled.assignment, result.assignment[order])
    np.testing.assert_array_equal(shuffled.centroids, result.centroids)
    np.testing.assert_array_equal(shuffled.distances, result.distances[order])
    if method == "classifier":
        grid = np.ix_(order, order)
        np.testing.assert_array_equal(shuffled.test.log_odds, result.test.log_odds[grid])


# ---- The two-sample test ----


def slow_test(samples, folds):
    """The same classifier, one pair, one fold and one prompt at a time."""
    count = len(samples)
    odds, right = np.zeros((count, count)), np.zeros((count, count))
    for one in range(count):
        for place, sample in enumerate(samples[one]):
            train = [rows[np.arange(len(rows)) % folds != place % folds] for rows in samples]
            residuals = np.concatenate([rows - rows.mean(axis=0) for rows in train])
            covariance = residuals.T @ residuals / (len(residuals) - count)
            diagonal = np.diag(np.diag(covariance))
            covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * diagonal
            for other in range(count):
                # Log-odds of two normal distributions with equal covariance.
                logs = [
                    -0.5 * gap @ np.linalg.solve(covariance, gap)
                    for gap in (sample - train[who].mean(axis=0) for who in (one, other))
                ]
                lead = logs[0] - logs[1]
                odds[one, other] += lead / len(samples[one])
                right[one, other] += (0.5 if one == other else lead > 0) / len(samples[one])
    return odds + odds.T, (right + right.T) / 2


@pytest.mark.parametrize("folds", [2, 5])
def test_pairwise_test_equals_one_classifier_at_a_time(folds):
    generator = np.random.default_rng(2)
    samples = [generator.normal(loc=0.4 * c, size=(count, 3)) for c, count in enumerate((9, 4, 7))]
    test = pairwise_test(samples, folds)
    odds, accuracy = slow_test(samples, folds)
    np.testing.assert_allclose(test.log_odds, odds, atol=1e-9)
    np.testing.assert_allclose(test.accuracy, accuracy, atol=1e-12)


def test_the_classifier_is_scikit_learns_discriminant():
    generator = np.random.default_rng(3)
    samples = [generator.normal(loc=0.8 * c, size=(40, 3)) for c in range(2)]
    ours = pairwise_test(samples, 4)
    found = []
    for fold in range(4):
        train = [rows[np.arange(40) % 4 != fold] for rows in samples]
        held = [rows[np.arange(40) % 4 == fold] for rows in samples]
        model = LinearDiscriminantAnalysis(solver="lsqr")
        model.fit(np.concatenate(train), np.repeat([0, 1], 30))
        found += [model.score(rows, np.full(10, label)) for label, rows in enumerate(held)]
    # Ours shrinks the covariance a little, which may move a prompt or two of 80.
    assert ours.accuracy[0, 1] == pytest.approx(np.mean(found), abs=0.03)


def test_log_odds_estimate_the_squared_mahalanobis_distance_without_bias():
    generator = np.random.default_rng(4)
    samples = [generator.normal(size=(16, DIMS)) for _ in range(60)]
    for rows in samples[30:]:
        rows[:, 0] += 1.2
    odds = pairwise_test(samples).log_odds
    same = odds[:30, :30][np.triu_indices(30, 1)]
    # Clients alike: 0 on average (the naive distance would be 2 * 6 / 16 = 0.75). The pairs share
    # 30 clients, and over seeds the averages below have deviations of .02 and .12.
    assert abs(same.mean()) < 0.12
    assert odds[:30, 30:].mean() == pytest.approx(1.2**2, abs=0.6)


@pytest.mark.parametrize("level", [0.01, 0.05, 0.2])
def test_identical_clients_cannot_be_told_apart(level):
    shares, accuracies = [], []
    for seed in range(20):
        profiles, _ = federation(30, 1, seed=seed)
        test = pairwise_test([profile.rows for profile in profiles])
        pairs = np.triu_indices(30, 1)
        shares.append(test.told_apart(level)[pairs].mean())
        accuracies.append(test.accuracy[pairs].mean())
    # 20 independent federations: the mean of their shares lies within 4 of its own deviations
    # of the level (6e-5), but for a fifth of it: prompts are few and the distribution is
    # approximate.
    assert abs(np.mean(accuracies) - 0.5) < 4 * np.std(accuracies) / np.sqrt(20)
    slack = 4 * np.std(shares) / np.sqrt(20) + level / 5
    assert abs(np.mean(shares) - level) < slack


def test_a_client_and_its_copy_cannot_be_told_apart():
    rows = federation(1, 1)[0][0].rows
    test = pairwise_test([rows, rows.copy()])
    assert test.accuracy[0, 1] == 0.5 and not test.told_apart().any()


def test_clients_of_unequal_groups_are_told_apart():
    profiles, truth = federation(24, 4)
    test = cluster_clients(profiles, 4, "classifier").test
    differ = truth[:, None] != truth[None, :]
    assert test.told_apart(0.01)[differ].mean() > 0.99
    with pytest.raises(ValueError, match="level: 0"):
        test.told_apart(0.0)


def test_what_is_told_apart_lies_between_clusters():
    profiles, _ = federation(24, 4)
    shares = cluster_clients(profiles, 4, "classifier").apart()
    assert shares["within"] < 0.15 and shares["between"] > 0.99
    assert cluster_clients(profiles, 4, "profile").apart() is None


@given(seed=st.integers(0, 1000), count=st.integers(2, 8), dims=st.integers(1, 5))
@limits(max_examples=30, deadline=None)
def test_classical_scaling_gives_back_euclidean_distances(seed, count, dims):
    points = np.random.default_rng(seed).normal(size=(count, dims))
    squared = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    laid = classical_scaling(squared, dims)
    found = ((laid[:, None] - laid[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(found, squared, atol=1e-8)


def test_covariance_is_that_within_clients():
    generator = np.random.default_rng(6)
    owners = np.repeat(np.arange(300), 10)
    rows = generator.normal(size=(3000, 2)) @ np.array([[1.0, 0.8], [0, 0.6]]) + owners[:, None]
    covariance = within_covariance(rows, owners)
    np.testing.assert_allclose(covariance, [[1, 0.8 * 0.9], [0.8 * 0.9, 1]], atol=0.12)
    assert within_covariance(rows[:4], owners[:4]) is None


# ---- Bad input, few clients, clients alike ----


@pytest.mark.parametrize("method", LEARNED)
@pytest.mark.parametrize("field", ["mean", "variance", "histogram", "rows"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_profiles_that_are_not_finite_are_named(method, field, value):
    profiles, _ = federation(8, 2)
    damaged = getattr(profiles[5], field).copy()
    damaged.flat[1] = value
    profiles[5] = replace(profiles[5], **{field: damaged})
    with pytest.raises(ProfileError, match=rf"profiles\[5\]\.{field}"):
        cluster_clients(profiles, 2, method)


@pytest.mark.parametrize("field", ["mean", "variance", "histogram", "rows"])
def test_profiles_of_another_shape_are_named(field):
    profiles, _ = federation(8, 2)
    wrong = getattr(profiles[3], field)[..., :-1]
    profiles[3] = replace(profiles[3], **{field: wrong})
    with pytest.raises(ProfileError, match=rf"profiles\[3\]\.{field}: shape"):
        cluster_clients(profiles, 2, "profile")


def test_wrong_settings_are_refused():
    profiles, _ = federation(8, 2)
    with pytest.raises(ValueError, match=r"method: 'magic'; allowed: classifier, profile$"):
        cluster_clients(profiles, 2, "magic")
    for clusters in (0, 9):
        for method in METHODS:
            with pytest.raises(ValueError, match=f"clusters: {clusters}; allowed: 1 to 8"):
                cluster_clients(profiles, clusters, method)
    bare = [replace(profile, rows=profile.rows[:1]) for profile in profiles]
    with pytest.raises(ProfileError, match="0 with at least 2 rows; allowed: at least 2"):
        cluster_clients(bare, 2, "classifier")
    with pytest.raises(ValueError, match="folds: 1"):
        pairwise_test([profile.rows for profile in profiles], 1)
    with pytest.raises(ValueError, match="at least 2 each"):
        pairwise_test([profiles[0].rows[:1]])


def test_clients_without_samples_go_to_the_nearest_cluster():
    profiles, truth = federation(24, 3)
    bare = [5, 10, 21]
    for place in bare:
        profiles[place] = replace(profiles[place], rows=profiles[place].rows[:1])
    result = cluster_clients(profiles, 3, "classifier")
    assert adjusted_rand_index(result.assignment, truth) == 1.0
    np.testing.assert_array_equal(result.tested, np.setdiff1d(np.arange(24), bare))


def test_without_any_rows_profiles_still_cluster():
    profiles, truth = federation(24, 3)
    profiles = [replace(profile, rows=profile.rows[:0]) for profile in profiles]
    result = cluster_clients(profiles, 3, "profile")
    assert adjusted_rand_index(result.assignment, truth) == 1.0


@pytest.mark.parametrize("method", LEARNED)
@pytest.mark.parametrize("clusters", [1, 2, 5, 6])
def test_every_cluster_has_a_client_even_when_all_are_alike(method, clusters):
    one = federation(1, 1)[0][0]
    result = cluster_clients([one] * 6, clusters, method)
    assert set(result.assignment) == set(range(clusters))
    assert result.centroids.shape[0] == clusters and np.isfinite(result.centroids).all()


@pytest.mark.parametrize("method", LEARNED)
def test_as_many_clusters_as_clients(method):
    profiles, _ = federation(5, 5)
    result = cluster_clients(profiles, 5, method)
    assert sorted(result.assignment) == list(range(5)) and result.silhouette is None


# ---- Late clients and re-clustering ----


@pytest.mark.parametrize("method", LEARNED)
def test_late_clients_go_where_their_group_is(method):
    profiles, truth = federation(40, 4)
    result = cluster_clients(profiles[:24], 4, method)
    placed = [nearest_cluster(profile, result) for profile in profiles[24:]]
    together = np.append(result.assignment, placed)
    assert adjusted_rand_index(together, truth) == 1.0


def test_placing_needs_learned_clusters_and_a_sound_profile():
    profiles, _ = federation(8, 2)
    with pytest.raises(ValueError, match="of method ''; allowed: classifier, profile"):
        nearest_cluster(profiles[0], ClusterResult(clusters=2))
    result = cluster_clients(profiles, 2, "profile")
    bad = replace(profiles[0], mean=np.full(DIMS, np.nan))
    with pytest.raises(ProfileError, match="NaN"):
        nearest_cluster(bad, result)
    small = FakeProfile(np.zeros(2), np.zeros(2), np.full(BINS, 0.25), np.zeros((0, 3)))
    with pytest.raises(ProfileError, match="2 dims"):
        nearest_cluster(small, result)


def test_labels_are_aligned_by_the_best_matching():
    np.testing.assert_array_equal(label_mapping([0, 0, 1, 1], [1, 1, 0, 2]), [1, 0, 2])
    np.testing.assert_array_equal(label_mapping([-1, -1, -1], [2, 0, 1]), [0, 1, 2])
    # Cluster by cluster, 1 would take the name 0 (4 clients) and leave 1 to keep 0 clients:
    # 4 in all, where the best matching keeps 6.
    old = [0] * 4 + [0] * 3 + [1] * 3
    new = [1] * 4 + [0] * 3 + [1] * 3
    assert (label_mapping(old, new)[new] == np.array(old)).sum() == 6
    with pytest.raises(ValueError, match="lengths 2 and 1"):
        label_mapping([0, 1], [0])
    with pytest.raises(ValueError, match="new"):
        label_mapping([0, 1], [0, -1])


@given(
    st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 3)), min_size=1, max_size=20),
)
@limits(max_examples=60, deadline=None)
def test_no_other_numbers_keep_more_clients(pairs):
    from itertools import permutations

    old, new = (np.array(column) for column in zip(*pairs, strict=True))
    mapping = label_mapping(old, new)
    assert sorted(mapping) == list(range(len(mapping)))
    best = max((np.array(names)[new] == old).sum() for names in permutations(range(len(mapping))))
    assert (mapping[new] == old).sum() == best


def test_a_map_of_learned_clusters():
    profiles, truth = federation(12, 3)
    members = [10 * place for place in range(12)]
    result = cluster_clients(profiles, 3, "profile")
    learned = LearnedClusters({1000: 0, 1001: 30, 1002: 7}, members, result)
    assert isinstance(learned, ClusterMap)
    assert learned.num_clusters == 3
    assert learned.clients_of([1000, 1001, 5]) == [0, 30, -1]
    # Clients 0 and 30 are places 0 and 3, both of group 0; client 7 is not known: 7 % 3.
    first = int(result.assignment[0])
    assert learned.clusters_of([1000, 1001, 1002, 5]) == [first, first, 1, 2]
    late = client(np.random.default_rng(8), 0.6 * np.eye(DIMS)[truth[2]])
    learned.register(1003, 4)
    assert learned.place(4, late) == result.assignment[2]
    assert learned.clusters_of([1003]) == [result.assignment[2]]
    assert learned.members[4] == result.assignment[2]
    with pytest.raises(ValueError, match="client: -1"):
        learned.register(1, -1)
    with pytest.raises(ValueError, match="members: 11; allowed: as many as clustered, 12"):
        LearnedClusters({}, members[:11], result)
    with pytest.raises(ValueError, match="different clients"):
        LearnedClusters({}, [0] * 12, result)


def test_a_bad_late_profile_leaves_the_client_where_it_was():
    profiles, _ = federation(12, 3)
    learned = LearnedClusters({}, range(12), cluster_clients(profiles, 3, "profile"))
    before = learned.members
    with pytest.raises(ProfileError):
        learned.place(3, replace(profiles[3], histogram=np.full(BINS, np.nan)))
    assert learned.members == before


def test_reclustering_keeps_cluster_numbers():
    profiles, _ = federation(30, 3)
    learned = LearnedClusters({}, range(30), cluster_clients(profiles, 3, "profile"))
    # The same clients, other prompts, listed without four that are away.
    fresh, _ = federation(30, 3, seed=1)
    present = [place for place in range(30) if place not in (2, 7, 8, 20)]
    result = cluster_clients([fresh[place] for place in present], 3, "classifier", seed=3)
    shifted = result.relabelled([1, 2, 0])
    renewed = learned.recluster(present, shifted)
    assert renewed.members == learned.members
    # Centroids moved with their numbers: profiles still find their own cluster.
    for place in range(30):
        assert renewed.place(place, fresh[place]) == learned.members[place]


def test_reclustering_to_fewer_clusters_forgets_those_that_are_gone():
    profiles, _ = federation(12, 4)
    learned = LearnedClusters({}, range(12), cluster_clients(profiles, 4, "profile"))
    renewed = learned.recluster(range(8), cluster_clients(profiles[:8], 2, "profile"))
    assert set(renewed.members.values()) == {0, 1}
    kept = {place: c for place, c in learned.members.items() if place >= 8 and c < 2}
    assert {place: c for place, c in renewed.members.items() if place >= 8} == kept


@pytest.mark.parametrize("method", METHODS)
def test_a_map_survives_a_restart(method):
    profiles, _ = federation(12, 3)
    learned = LearnedClusters({5: 1}, range(12), cluster_clients(profiles, 3, method, seed=1))
    late = client(np.random.default_rng(8), np.zeros(DIMS))
    placed = learned.place(40, late)
    state = state_from_bytes(state_to_bytes(learned.state_dict()))
    back = LearnedClusters.from_state({77: 1}, state)
    assert back.cluster_of(40) == placed and back.members == learned.members
    assert back.clusters_of([77]) == learned.clusters_of([5])
    assert back.place(41, late) == learned.place(41, late)
    with pytest.raises(ValueError, match="version 2"):
        LearnedClusters.from_state({}, {"version": 2})


def test_a_map_that_has_learned_nothing_deals_clients_in_turn():
    nothing = ClusterResult(clusters=3)
    assert nothing.space is None and nothing.silhouette is None and nothing.apart() is None
    state = state_from_bytes(state_to_bytes(LearnedClusters({5: 1}, [], nothing).state_dict()))
    back = LearnedClusters.from_state({77: 1}, state)
    late = client(np.random.default_rng(8), np.zeros(DIMS))
    assert back.clusters_of([77]) == [1] and back.place(40, late) == 40 % 3


def test_relabelling_needs_a_permutation():
    result = cluster_clients(federation(6, 2)[0], 2, "profile")
    with pytest.raises(ValueError, match="allowed: a permutation of 0 to 1"):
        result.relabelled([0, 0])


# ---- Reports ----


def test_purity_by_hand():
    # Cluster 0 holds 5 + 1 of label 0 and 2 + 3 of label 1; cluster 1 holds 1 and 4.
    counts = np.array([[5, 2], [1, 4], [1, 3]])
    assert purity([0, 1, 0], counts) == (6 + 4) / 16
    assert purity([0, 0, 0], counts) == 9 / 16
    for assignment, wrong in (([0, 1], counts), ([0, 1, 0], -counts), ([0, 1, 0], 0 * counts)):
        with pytest.raises(ValueError, match="label_counts"):
            purity(assignment, wrong)


def test_adjusted_rand_index_ignores_names():
    assert adjusted_rand_index([0, 0, 1, 2], [2, 2, 0, 1]) == 1.0
    assert adjusted_rand_index([0, 1, 0, 1], [0, 0, 1, 1]) == pytest.approx(-0.5)


def test_features_are_centred_and_weighted():
    profiles, _ = federation(20, 4)
    features = FeatureSpace.fit(profiles).transform(profiles)
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-12)
    totals = [part.var(axis=0).sum() for part in np.split(features, [DIMS + 1, 2 * DIMS + 1], 1)]
    np.testing.assert_allclose(totals, [1.0, 0.25, 0.25])


def test_clients_with_one_prompt_do_not_get_clusters_of_their_own():
    generator = np.random.default_rng(4)
    large, truth = federation(12, 2)
    small = [client(generator, np.zeros(DIMS), prompts=1, spread=1.5) for _ in range(4)]
    found = cluster_clients([*large, *small], 2, "profile").assignment
    assert adjusted_rand_index(found[:12], truth) == 1.0
