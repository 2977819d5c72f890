"""Exact enumeration: no sampling anywhere in this file, so no false alarms."""

import itertools

import numpy as np
import pytest
import torch

from hlm.randomness import DrawKeys
from hlm.truncation.quantising import probs_from_weights, quantise, quantise_dithered
from hlm.verification import VERIFIERS
from hlm.verification.coupled import Coupled
from hlm.verification.speculative import accept_probability, residual
from hlm.verification.truncated import Truncated, TruncatedExact
from tests.hlm.verifier_analysis import (
    kept_loss,
    match_probability,
    output_distribution,
    rejection_probability,
    token_distribution,
    total_variation,
)

EXACT_SAMPLED = [
    name for name, verifier in VERIFIERS.items() if verifier.exact and name != "greedy"
]


def random_probs(seed, rows, vocab, spread=1.5, zeros=0.2):
    """Distributions of the sort that occur: some peaked, some with impossible tokens."""
    generator = np.random.default_rng(seed)
    weights = np.exp(generator.normal(size=(rows, vocab)) * spread)
    mask = generator.random((rows, vocab)) >= zeros
    mask[np.arange(rows), generator.integers(vocab, size=rows)] = True
    weights *= mask
    return torch.from_numpy(weights / weights.sum(-1, keepdims=True))


def special_pairs():
    """Equal, disjoint, point masses, all but equal, and tokens of next to no probability."""
    x = torch.tensor(
        [
            [0.2, 0.3, 0.5],
            [0.5, 0.5, 0.0],
            [1.0, 0.0, 0.0],
            [1.0, 0.0, 0.0],
            [0.25, 0.25, 0.5],
            [1e-300, 1.0, 0.0],
            [0.1, 0.1, 0.8],
        ],
        dtype=torch.float64,
    )
    y = torch.tensor(
        [
            [0.2, 0.3, 0.5],
            [0.0, 0.0, 1.0],
            [0.0, 1.0, 0.0],
            [1.0, 0.0, 0.0],
            [0.25, 0.25 + 1e-13, 0.5 - 1e-13],
            [0.5, 1e-300, 0.5],
            [1.0, 0.0, 0.0],
        ],
        dtype=torch.float64,
    )
    return x, y


PAIRS = [
    (random_probs(0, 200, 2), random_probs(1, 200, 2)),
    (random_probs(2, 200, 3), random_probs(3, 200, 3)),
    (random_probs(4, 100, 7, 3.0), random_probs(5, 100, 7, 3.0)),
    (random_probs(6, 30, 40), random_probs(7, 30, 40)),
    special_pairs(),
]


@pytest.mark.parametrize("name", EXACT_SAMPLED)
@pytest.mark.parametrize("pair", range(len(PAIRS)))
def test_output_distribution_of_every_exact_method_is_the_target(name, pair):
    x, y = PAIRS[pair]
    assert float((output_distribution(VERIFIERS[name](), x, y) - y).abs().max()) < 1e-9


@pytest.mark.parametrize("name", EXACT_SAMPLED)
@pytest.mark.parametrize("pair", range(len(PAIRS)))
def test_no_exact_method_rejects_less_than_total_variation(name, pair):
    x, y = PAIRS[pair]
    verifier = VERIFIERS[name]()
    # the draft's distribution is x after rounding or truncation: what the method really draws from
    drawn = device_probs(name, x)
    assert bool((rejection_probability(verifier, x, y) >= total_variation(drawn, y) - 1e-12).all())
    if name in ("full", "truncated-exact"):
        assert torch.allclose(
            rejection_probability(verifier, x, y), total_variation(drawn, y), atol=1e-12
        )


def device_probs(name, x):
    """The distribution `draft` of a method says it drew from."""
    rows = np.arange(x.shape[0])
    return VERIFIERS[name]().draft(x, DrawKeys(0, rows, rows)).distribution


def test_scalar_rejects_hardly_more_than_total_variation():
    for x, y in PAIRS:
        quantised = probs_from_weights(quantise(x, 16), 16)
        excess = rejection_probability(VERIFIERS["scalar"](), x, y) - total_variation(quantised, y)
        assert float(excess.max()) <= x.shape[1] * 2**-16


@pytest.mark.parametrize("count", [1, 2, 5])
def test_truncated_exact_is_exact_at_any_k_and_by_any_rule(count):
    x, y = PAIRS[2]
    for options in ((count,), (0, 0.1 * count)):
        assert float((output_distribution(TruncatedExact(*options), x, y) - y).abs().max()) < 1e-9


@pytest.mark.parametrize("count", [1, 2, 5, 39])
def test_bias_of_the_truncated_method_is_within_its_bound(count):
    biased = 0
    for x, y in PAIRS:
        if x.shape[1] == 2 and count > 1:
            continue
        verifier = Truncated(count)
        seen = TruncatedExact(count)._truncated(x)[3]
        bias = total_variation(output_distribution(verifier, x, y), y)
        assert bool((bias <= total_variation(x, seen) + 1e-12).all())
        biased += int((bias > 1e-4).sum())
    assert biased > 0  # the bound is not met because nothing happened
    assert not VERIFIERS["truncated"].exact


def test_output_distribution_is_biased_when_draft_and_test_use_different_distributions():
    x, y = PAIRS[1]
    other = random_probs(99, 200, 3)
    bias = total_variation(token_distribution(x, other, y), y)
    assert bool((bias <= total_variation(x, other) + 1e-12).all())
    assert float(bias.max()) > 0.05


def test_greedy_gives_the_top_token_of_the_target():
    for x, y in PAIRS:
        result = output_distribution(VERIFIERS["greedy"](), x, y)
        assert torch.equal(result.argmax(-1), y.argmax(-1))
        assert torch.equal(result.sum(-1), torch.ones(y.shape[0], dtype=torch.float64))


def race_probs(x, y):
    """Joint distribution of (device token, server token) of one coupled race, [vocab, vocab].

    P(i, j) is the integral of x_i y_j / A(r)**2 over r in [y_i/x_i, y_j/x_j] with
    A(r) = sum_k max(x_k r, y_k), which is linear between the ratios y_k/x_k; P(i, i) = x_i / A(y_i
    / x_i) * y_i / x_i.
    """
    vocab = len(x)
    ratios = [y[k] / x[k] for k in range(vocab)]
    joint = np.zeros((vocab, vocab))

    def total(r):
        return sum(max(x[k] * r, y[k]) for k in range(vocab))

    for i, j in itertools.product(range(vocab), repeat=2):
        if i == j:
            joint[i, i] = y[i] / total(ratios[i])
            continue
        edges = sorted({r for r in ratios if ratios[i] <= r <= ratios[j]})
        for low, high in itertools.pairwise(edges):
            joint[i, j] += x[i] * y[j] * (high - low) / (total(low) * total(high))
    return joint


def test_coupled_race_by_its_exact_joint_distribution():
    for seed in range(40):
        vocab = 2 + seed % 5
        x = random_probs(seed, 1, vocab, zeros=0.0)
        y = random_probs(seed + 1000, 1, vocab, zeros=0.0)
        joint = race_probs(x[0].numpy(), y[0].numpy())
        assert np.allclose(joint.sum(1), x[0], atol=1e-12)
        assert np.allclose(joint.sum(0), y[0], atol=1e-12)
        assert np.allclose(np.diag(joint), match_probability(x, y)[0], atol=1e-12)
        assert np.allclose(1 - np.diag(joint) / x[0].numpy(), kept_loss(x, y)[0], atol=1e-12)


def test_coupled_matches_the_formula_as_written():
    x, y = random_probs(8, 50, 6, zeros=0.0), random_probs(9, 50, 6, zeros=0.0)
    ratio_x = x.unsqueeze(1) / x.unsqueeze(2)
    ratio_y = y.unsqueeze(1) / y.unsqueeze(2)
    expected = (1 / torch.maximum(ratio_x, ratio_y).sum(-1)).sum(-1)
    assert torch.allclose(1 - rejection_probability(Coupled(), x, y), expected, atol=1e-12)


@pytest.mark.parametrize("pair", range(len(PAIRS)))
def test_coupled_stays_between_its_bounds(pair):
    x, y = PAIRS[pair]
    match = 1 - rejection_probability(Coupled(), x, y)
    distance = total_variation(x, y)
    assert bool((match >= (1 - distance) / (1 + distance) - 1e-12).all())
    assert bool((match <= 1 - distance + 1e-12).all())


# ---- texts of several tokens -----------------------------------------------------------------


class Model:
    """A distribution for every context of a small vocabulary."""

    def __init__(self, seed, vocab, length, zeros=0.15):
        contexts = [
            context
            for size in range(length)
            for context in itertools.product(range(vocab), repeat=size)
        ]
        table = random_probs(seed, len(contexts), vocab, zeros=zeros)
        self.probs = {context: table[i : i + 1] for i, context in enumerate(contexts)}
        self.vocab, self.length = vocab, length

    def text_probs(self):
        return text_probs(self.vocab, self.length, lambda context: self.probs[context][0])


def text_probs(vocab, length, next_probs):
    """Distribution of whole texts from the distribution of the next token, as a flat tensor."""
    probs = []
    for text in itertools.product(range(vocab), repeat=length):
        chance = 1.0
        for size in range(length):
            chance = chance * float(next_probs(text[:size])[text[size]])
        probs.append(chance)
    return torch.tensor(probs, dtype=torch.float64)


@pytest.mark.parametrize("name", EXACT_SAMPLED)
def test_texts_of_three_tokens_have_the_target_distribution(name):
    verifier = VERIFIERS[name]()
    for seed in range(5):
        small, large = Model(seed, 3, 3), Model(seed + 50, 3, 3)
        hybrid = {
            context: output_distribution(verifier, small.probs[context], large.probs[context])[0]
            for context in small.probs
        }
        difference = text_probs(3, 3, hybrid.__getitem__) - large.text_probs()
        assert float(difference.abs().max()) < 1e-9


def speculative_kernel(x, y):
    """Row d: distribution of the token when d is drafted and verified, [vocab, vocab]."""
    accepted = accept_probability(x, y)
    return torch.diag(accepted) + (1 - accepted).unsqueeze(1) * residual(x[None], y[None])


def coupled_kernel(x, y):
    return torch.from_numpy(race_probs(x.numpy(), y.numpy())) / x.unsqueeze(1)


def routed(small, large, kernel, keep):
    """Next-token distribution of the hybrid and its expected loss, per context."""
    probs, losses = {}, {}
    for context in small.probs:
        x, y = small.probs[context][0], large.probs[context][0]
        kept = keep[context].double()
        transition = kernel(x, y)
        loss = 1 - transition.diagonal()
        probs[context] = x * kept + (x * (1 - kept)) @ transition
        losses[context] = float((x * kept * loss).sum())
    return probs, losses


def certificate(vocab, length, probs, losses):
    """E over hybrid texts of the sum of kept * loss."""
    total = 0.0
    for size in range(length):
        for context in itertools.product(range(vocab), repeat=size):
            chance = 1.0
            for end in range(size):
                chance *= float(probs[context[:end]][context[end]])
            total += chance * losses[context]
    return total


@pytest.mark.parametrize(("kernel", "zeros"), [(speculative_kernel, 0.15), (coupled_kernel, 0.0)])
@pytest.mark.parametrize(("vocab", "length"), [(3, 2), (2, 3), (3, 3)])
def test_certificate_bounds_the_distance_of_texts(kernel, zeros, vocab, length):
    generator = torch.Generator().manual_seed(length)
    tight = 0
    for seed in range(30):
        small = Model(seed, vocab, length, zeros)
        large = Model(seed + 500, vocab, length, zeros)
        # routing by u: any subset of drafts may be kept, also the worst
        threshold = float(torch.rand(1, generator=generator))
        noise = {context: torch.rand(vocab, generator=generator) for context in small.probs}
        for keep in (
            {context: 1 - probs[0] <= threshold for context, probs in small.probs.items()},
            {context: noise[context] <= threshold for context in small.probs},
            {context: torch.ones(vocab, dtype=torch.bool) for context in small.probs},
        ):
            probs, losses = routed(small, large, kernel, keep)
            distance = float(
                (text_probs(vocab, length, probs.__getitem__) - large.text_probs()).abs().sum() / 2
            )
            bound = certificate(vocab, length, probs, losses)
            assert distance <= bound + 1e-12
            tight += distance > 0.5 * bound > 0.01
    assert tight > 0


def test_coupled_routing_needs_the_loss_of_the_race():
    # a draft kept by its own look takes its race's outcome along: eq. 3 would promise too much
    x = torch.tensor([0.4, 0.3, 0.3], dtype=torch.float64)
    y = torch.tensor([0.3, 0.6, 0.1], dtype=torch.float64)
    kept = torch.tensor([True, False, False])
    transition = coupled_kernel(x, y)
    output = x * kept + (x * ~kept) @ transition
    distance = float((output - y).abs().sum() / 2)
    eq_3 = float((x * kept * (1 - accept_probability(x, y))).sum())
    race = float((x * kept * kept_loss(x[None], y[None])[0]).sum())
    assert eq_3 < distance <= race + 1e-12


def test_speculative_loss_is_beta_of_the_paper():
    x, y = PAIRS[1]
    possible = x > 0
    beta = (1 - y / torch.where(possible, x, 1.0)).clamp(min=0)
    loss = 1 - accept_probability(x, y)
    assert torch.allclose(loss[possible], beta[possible], atol=1e-15)
    assert torch.allclose((x * loss).sum(-1), total_variation(x, y), atol=1e-12)


def test_dither_slices_cover_every_rounding():
    # the enumeration of `dither_slices` against a grid of dithers
    x, y = PAIRS[1][0][:5], PAIRS[1][1][:5]
    grid = (torch.arange(4001, dtype=torch.float64) + 0.5) / 4001
    quantised = probs_from_weights(quantise(x, 16), 16)
    exact = rejection_probability(VERIFIERS["scalar"](), x, y)
    for row in range(5):
        rounded = probs_from_weights(quantise_dithered(y[row].expand(4001, -1), 16, grid), 16)
        mean = total_variation(quantised[row], rounded).mean()
        assert float((mean - exact[row]).abs()) < 1e-7
