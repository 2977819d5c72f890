"""The verifiers as they run: drafts, claims, verdicts, and who may cheat.

Chi-square tests use fixed seeds and fail by chance with probability 1e-6 each.
"""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from hlm.randomness import DrawKeys, exponentials
from hlm.sampling import Sampling, distribution
from hlm.verification import (
    UNDECIDED,
    VERIFIERS,
    Claim,
    ClaimError,
    Coupled,
    Greedy,
    Verifier,
)
from hlm.verification.coupled import exponential_race
from hlm.verification.full import Full
from hlm.verification.scalar import Scalar
from hlm.verification.truncated import Truncated, TruncatedExact
from hlm.verifiers import Shape
from tests.hlm.verifier_analysis import output_distribution, rejection_probability

X = torch.tensor([[0.30, 0.05, 0.0, 0.25, 0.38, 0.02]], dtype=torch.float64)
Y = torch.tensor([[0.10, 0.25, 0.2, 0.05, 0.40, 0.0]], dtype=torch.float64)
ROWS = 8_000
FALSE_ALARM = 1e-6


def keys(rows, seed=11):
    return DrawKeys(seed, np.arange(rows) % 97, np.arange(rows) // 97)


def run(verifier, x, y, names):
    """Draft, decide and finish."""
    draft = verifier.draft(x, names)
    verdict = verifier.decide(y, draft.claim, names)
    return draft, verdict.accepted, verifier.finish(draft, verdict, names)


def chi_square(tokens, expected_probs):
    counts = np.bincount(tokens.numpy(), minlength=expected_probs.shape[0])
    possible = expected_probs.numpy() > 0
    assert counts[~possible].sum() == 0
    expected = expected_probs.numpy()[possible] * counts.sum()
    return stats.chisquare(counts[possible], expected * counts.sum() / expected.sum()).pvalue


METHODS = [
    Full(),
    Truncated(2),
    Truncated(0, 0.5),
    TruncatedExact(2),
    TruncatedExact(0, 0.5),
    Scalar(),
    Coupled(),
]


@pytest.mark.parametrize("verifier", METHODS, ids=lambda v: f"{v.name}-{METHODS.index(v)}")
def test_tokens_follow_the_stated_distribution_and_rejections_the_stated_rate(verifier):
    draft, accepted, tokens = run(verifier, X.expand(ROWS, -1), Y.expand(ROWS, -1), keys(ROWS))
    expected = output_distribution(verifier, X, Y)[0]
    assert chi_square(tokens, expected) > FALSE_ALARM
    assert chi_square(draft.tokens, draft.distribution[0]) > FALSE_ALARM
    if VERIFIERS[verifier.name].exact:
        assert float((expected - Y[0]).abs().max()) < 1e-9
    rejected = int((~accepted).sum())
    rate = rejection_probability(verifier, X, Y).item()
    assert stats.binomtest(rejected, ROWS, rate).pvalue > FALSE_ALARM


def test_biased_method_is_seen_to_be_biased():
    _, _, tokens = run(Truncated(1), X.expand(ROWS, -1), Y.expand(ROWS, -1), keys(ROWS))
    assert chi_square(tokens.clamp(max=4), Y[0, :5]) < FALSE_ALARM


@pytest.mark.parametrize("name", sorted(VERIFIERS))
def test_results_do_not_depend_on_the_batch(name):
    generator = np.random.default_rng(3)
    x = torch.softmax(torch.from_numpy(generator.normal(size=(12, 40))), -1)
    y = torch.softmax(torch.from_numpy(generator.normal(size=(12, 40))), -1)
    verifier = VERIFIERS[name]()
    names = keys(12)
    draft, accepted, tokens = run(verifier, x, y, names)
    for row in range(12):
        index = torch.tensor([row])
        alone = run(verifier, x[index], y[index], names.select(index))
        assert torch.equal(alone[0].tokens, draft.tokens[index])
        assert torch.equal(alone[1], accepted[index])
        assert torch.equal(alone[2], tokens[index])


@pytest.mark.parametrize("name", sorted(VERIFIERS))
def test_server_needs_the_claim_and_the_device_needs_the_verdict_only(name):
    # two instances that never met; claim and verdict rebuilt field by field as from a wire
    x, y = X.expand(200, -1), Y.expand(200, -1)
    device, server = VERIFIERS[name](), VERIFIERS[name]()
    draft = device.draft(x, keys(200))
    copied = Claim(**{f.name: getattr(draft.claim, f.name) for f in dataclasses.fields(Claim)})
    verdict = server.decide(y, copied, keys(200))
    tokens = device.finish(draft, verdict, keys(200))
    assert torch.equal(tokens[verdict.accepted], draft.tokens[verdict.accepted])
    assert torch.equal(draft.probabilities, draft.distribution[torch.arange(200), draft.tokens])
    assert bool((draft.probabilities > 0).all())


@pytest.mark.parametrize("name", sorted(VERIFIERS))
def test_equal_distributions_are_always_accepted(name):
    # distributions in units of 2**-16 that truncation keeps whole; the dither leaves integers alone
    x = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).double().expand(500, -1)
    verifier = VERIFIERS[name]()
    draft, accepted, tokens = run(verifier, x, x, keys(500))
    assert bool(accepted.all())
    assert torch.equal(tokens, draft.tokens)


@pytest.mark.parametrize("name", sorted(VERIFIERS))
def test_disjoint_distributions_are_always_resampled(name):
    x = torch.tensor([[1.0, 0.0, 0.0]]).double().expand(200, -1)
    y = torch.tensor([[0.0, 0.75, 0.25]]).double().expand(200, -1)
    _, accepted, tokens = run(VERIFIERS[name](), x, y, keys(200))
    assert bool((tokens > 0).all())
    if name != "truncated-exact":  # whose byte-wide weights leave 1/256 to the tail
        assert not bool(accepted.any())


@pytest.mark.parametrize("name", sorted(VERIFIERS))
def test_point_masses_are_decided_with_16_bits(name):
    x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.2, 0.3, 0.5]]).double()
    y = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]).double()
    verifier = VERIFIERS[name]()
    draft = verifier.draft(x, keys(3))
    verdict = verifier.decide(y, draft.claim, keys(3))
    if verdict.target_weights is not None:
        assert int(verdict.target_weights.max()) < 2**16
    assert run(verifier, x, y, keys(3))[2].tolist() == [1, 2, 0]


def test_registry_names_and_statements():
    for name, kind in VERIFIERS.items():
        verifier: Verifier = kind()
        assert verifier.name == name
        statement = " ".join((verifier.__doc__ or "").lower().split())
        for required in ("crosses the link", "exact", "rejection probability"):
            assert required in statement
    assert [name for name, kind in VERIFIERS.items() if not kind.exact] == ["truncated"]


@pytest.mark.parametrize("name", VERIFIERS)
def test_claims_have_the_shape_that_the_registry_says(name):
    kind = VERIFIERS[name]
    claim = kind().draft(X, keys(1)).claim
    given = (claim.weight, claim.support, claim.weights)
    expected = {
        Shape.NOTHING: (False, False, False),
        Shape.WEIGHT: (True, False, False),
        Shape.SUPPORT: (False, True, True),
        Shape.PROBS: (False, False, True),
    }
    assert tuple(part is not None for part in given) == expected[kind.claim]


def test_greedy_ties_go_to_the_lowest_id_on_both_sides():
    logits = torch.tensor([[1.0, 2.0, 2.0]], dtype=torch.float32)
    softmax = distribution(logits, Sampling("sampled"))
    verifier = Greedy()
    draft = verifier.draft(softmax, keys(1))
    assert draft.tokens.tolist() == [1]
    assert draft.probabilities.tolist() == [1.0]
    verdict = verifier.decide(distribution(logits, Sampling("greedy")), draft.claim, keys(1))
    assert verdict.accepted.tolist() == [True]


# ---- float details of the race -----------------------------------------------------------------


def test_race_ties_go_to_the_lowest_id():
    clocks = torch.tensor([[3.0, 1.0, 1.0]]).double()
    assert exponential_race(torch.full((1, 3), 1 / 3), clocks).tolist() == [1]


def test_race_never_returns_an_impossible_token():
    clocks = torch.tensor([[1e-16, 5.0, 1e-16]]).double()
    assert exponential_race(torch.tensor([[0.0, 1.0, 0.0]]), clocks).tolist() == [1]
    # all waiting times overflow; the possible token still wins
    tiny = torch.tensor([[0.0, 5e-324, 0.0]], dtype=torch.float64)
    assert exponential_race(tiny, clocks).tolist() == [1]


def test_race_in_float32_is_the_race_of_the_same_numbers_in_float64():
    x = torch.softmax(torch.from_numpy(np.random.default_rng(0).normal(size=(500, 64))), -1).float()
    names = keys(500)
    clocks = exponentials(names, 64)
    assert torch.equal(exponential_race(x, clocks), exponential_race(x.double(), clocks))
    draft = Coupled().draft(x, names)
    assert draft.distribution.dtype == torch.float64


@pytest.mark.parametrize("name", sorted(VERIFIERS))
def test_float32_distributions_and_no_rows_are_fine(name):
    verifier = VERIFIERS[name]()
    tokens = run(verifier, X.float().expand(50, -1), Y.float().expand(50, -1), keys(50))[2]
    assert bool((Y[0, tokens] > 0).all())
    assert run(verifier, X[:0], Y[:0], keys(0))[2].shape == (0,)


# ---- claims that cannot be ---------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(VERIFIERS))
@pytest.mark.parametrize("token", [-1, 6])
def test_drafts_outside_the_vocabulary_are_refused(name, token):
    claim = dataclasses.replace(
        VERIFIERS[name]().draft(X, keys(1)).claim, tokens=torch.tensor([token])
    )
    with pytest.raises(ClaimError, match="tokens"):
        VERIFIERS[name]().decide(Y, claim, keys(1))


def test_claims_without_their_fields_are_refused():
    bare = Claim(torch.tensor([0]))
    for name in ("full", "truncated", "truncated-exact", "scalar"):
        with pytest.raises(ClaimError, match="weight"):
            VERIFIERS[name]().decide(Y, bare, keys(1))
    with pytest.raises(ClaimError, match="shape"):
        Coupled().decide(Y, Claim(torch.tensor([0, 1])), keys(1))


@pytest.mark.parametrize("weight", [0, -3, 2**16 + 1])
def test_impossible_weights_are_refused(weight):
    claim = Claim(torch.tensor([0]), weight=torch.tensor([weight]))
    with pytest.raises(ClaimError, match="weight"):
        Scalar().decide(Y, claim, keys(1))


def test_weights_that_are_no_distribution_are_refused():
    weights = torch.tensor([[2**16, 1, 0, 0, 0, 0]])
    with pytest.raises(ClaimError, match="weights"):
        Full().decide(Y, Claim(torch.tensor([0]), weights=weights), keys(1))
    support = torch.tensor([[0, 0]])
    claim = Claim(torch.tensor([0]), support=support, weights=support, counts=torch.tensor([2]))
    with pytest.raises(ClaimError, match="twice"):
        Truncated().decide(Y, claim, keys(1))


def test_verdicts_that_cannot_be_are_refused():
    draft = Scalar().draft(X.expand(40, -1), keys(40))
    verdict = Scalar().decide(Y.expand(40, -1), draft.claim, keys(40))
    with pytest.raises(ClaimError, match="target_weights"):
        Scalar().finish(draft, dataclasses.replace(verdict, target_weights=None), keys(40))
    assert verdict.target_weights is not None
    wrong = dataclasses.replace(verdict, target_weights=verdict.target_weights * 2)
    with pytest.raises(ClaimError, match="target_weights"):
        Scalar().finish(draft, wrong, keys(40))
    with pytest.raises(ClaimError, match="undecided"):
        Full().finish(draft, verdict, keys(40))


def test_coupled_output_does_not_depend_on_the_claim():
    # a device that lies about its draft cannot bend the text
    honest = Coupled().decide(Y.expand(9, -1), Claim(torch.zeros(9, dtype=torch.int64)), keys(9))
    other = Coupled().decide(Y.expand(9, -1), Claim(torch.full((9,), 3)), keys(9))
    assert torch.equal(honest.tokens, other.tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_greedy_draft_from_logits_is_that_from_their_distribution(dtype):
    logits = torch.from_numpy(np.random.default_rng(3).normal(size=(40, 30))).to(dtype)
    names = keys(40)
    short = Greedy().draft_top(logits)
    long = Greedy().draft(distribution(logits, Sampling()), names)
    assert torch.equal(short.tokens, long.tokens)
    assert torch.equal(short.claim.tokens, long.claim.tokens)
    assert torch.equal(short.probabilities, long.probabilities)
    assert short.select(torch.tensor([2, 5])).distribution is None


def test_drafts_without_a_distribution_cannot_be_resampled():
    names = keys(1)
    draft = Greedy().draft_top(torch.tensor([[0.0, 1.0]]))
    verdict = dataclasses.replace(
        Greedy().decide(torch.tensor([[1.0, 0.0]]), draft.claim, names),
        tokens=torch.tensor([UNDECIDED]),
    )
    with pytest.raises(ValueError, match="distribution: this method"):
        Scalar().finish(draft, verdict, names)
