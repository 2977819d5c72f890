from __future__ import annotations

import copy
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM

from clients.block_uplink import BlockUplink
from clients.decoding.drafting import RouterConfig
from clients.decoding.slm import LockstepDecoder
from clients.decoding.speculative import SpeculativeDecoder
from clients.decoding.ways import rollback_decoder
from clients.policy import ThresholdPolicy
from clients.records import Stage, TextBatch, Traffic
from clients.resolvers.link import BackOff
from clients.resolvers.messages import UplinkConfig
from hlm.sampling import Sampling, distribution
from hlm.uncertainty import closed_form
from hlm.verification import VERIFIERS
from servers.engine.engine import Engine
from servers.llm import LanguageModelService
from tests.models import ARCHITECTURES, VOCAB, random_model
from tests.routed import GREEDY, SAMPLED, Link, build, make_prompts, new_part, own_text

STEPS = 13


def relative(model, noise, seed=0):
    """A model that often agrees with another, as two that share nothing but a size never do."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in other.parameters():
            size = noise * weights.std() if weights.ndim > 1 else 0.0
            weights += size * torch.randn(weights.shape, generator=generator)
    return other


class Setup:
    def __init__(
        self, slm, llm, sampling=GREEDY, method=None, draft_tokens=4, *,
        context=64, ends=frozenset(), seed=7, sessions=64, pause=0.0,
    ):  # fmt: skip
        name = method or ("greedy" if sampling.decoding == "greedy" else "coupled")
        self.engine = Engine(llm, max_sessions=sessions, max_context=context)
        self.link = Link(LanguageModelService(self.engine))
        vocab = slm.config.vocab_size
        self.uplink = BlockUplink(
            self.link,
            VERIFIERS[name](),
            UplinkConfig(0, vocab, sampling, seed=seed),
        )
        self.uplink.link.back_off = BackOff(pause)
        config = RouterConfig(
            sampling, lambda logits, draft, keys: closed_form(logits, draft, 1.0), seed, 0, ends
        )
        self.decoder = SpeculativeDecoder(slm, config, self.uplink, draft_tokens)

    def key(self, session):
        return 0, session, self.uplink.config.identity

    def generate(self, prompts, new_tokens, sessions=None):
        sessions = np.arange(len(prompts)) if sessions is None else sessions
        texts, traffic = TextBatch(prompts, sessions, room=new_tokens), Traffic()
        return texts, self.decoder.generate(texts, new_tokens, traffic), traffic


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("draft_tokens", [1, 4])
def test_greedy_text_is_the_llms_own(architecture, draft_tokens):
    slm = random_model(architecture, 1)
    llm = relative(slm, 0.1)
    prompts = make_prompts(VOCAB)
    texts, records, _ = Setup(slm, llm, draft_tokens=draft_tokens).generate(prompts, STEPS)
    for row, prompt in enumerate(prompts):
        assert new_part(texts, row) == own_text(llm, prompt, STEPS)
        assert records.token[row].tolist() == new_part(texts, row)
    assert records.tokens == sum(records.stage_counts().values()) == 5 * STEPS


@pytest.mark.parametrize("draft_tokens", [1, 2, 3, 6])
def test_coupled_text_is_the_llms_own_draw_by_draw(draft_tokens):
    slm = random_model("llama", 1)
    llm = relative(slm, 0.1)
    prompts = make_prompts(VOCAB, 6)
    for seed in (3, 4, 5):
        own, _, _ = build(llm, llm, ThresholdPolicy(1.0), SAMPLED, seed=seed).generate(
            prompts, STEPS
        )
        setup = Setup(slm, llm, SAMPLED, draft_tokens=draft_tokens, seed=seed)
        texts, records, _ = setup.generate(prompts, STEPS)
        assert np.array_equal(texts.tokens, own.tokens)
        counts = records.stage_counts()
        assert min(counts["llm_accepted"], counts["llm_resampled"]) > 0


def test_alone_or_together_is_the_same():
    slm = random_model("qwen2", 1)
    llm = relative(slm, 0.1)
    prompts = make_prompts(VOCAB)
    together, _, _ = Setup(slm, llm, SAMPLED).generate(prompts, STEPS)
    for row, prompt in enumerate(prompts):
        alone, _, _ = Setup(slm, llm, SAMPLED).generate([prompt], STEPS, np.array([row]))
        assert new_part(alone, 0) == new_part(together, row)


def small_vocabulary(seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=5, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=16,
        initializer_range=0.35, bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.slow
def test_the_distribution_of_texts_is_the_llms():
    """4,000 texts of three tokens against their exact distribution; false alarm 1e-4."""
    slm, llm = small_vocabulary(1), small_vocabulary(2)
    prompt = np.array([1, 3])
    texts_made, batch = 4000, 1000
    made, resampled = [], []
    for first in range(0, texts_made, batch):
        setup = Setup(slm, llm, SAMPLED, draft_tokens=2, context=16, sessions=batch)
        sessions = np.arange(first, first + batch)
        texts, records, _ = setup.generate([prompt] * batch, 3, sessions)
        made.append(texts.tokens[:, 2:5] @ np.array([25, 5, 1]))
        resampled.append((records.stage == Stage.LLM_RESAMPLED).mean())
    every = np.array(list(product(range(5), repeat=3)))
    whole = np.concatenate([np.tile(prompt, (125, 1)), every], axis=1)
    with torch.inference_mode():
        logits = llm(torch.from_numpy(whole)).logits[:, 1:4].float()
    probs = distribution(logits.reshape(-1, 5), SAMPLED).view(125, 3, 5)
    chances = probs.gather(2, torch.from_numpy(every)[:, :, None])[:, :, 0].prod(1).numpy()
    assert chances.sum() == pytest.approx(1)
    # Rare texts are counted as one, as chi-square wants.
    common = chances * texts_made >= 5
    counts = np.bincount(np.concatenate(made), minlength=125)
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(chances[common], chances[~common].sum()) * texts_made
    assert stats.chisquare(observed, expected).pvalue > 1e-4
    # The test means something: both ends occur.
    assert 0.1 < np.mean(resampled) < 0.9


def test_a_block_takes_one_message():
    slm = random_model("llama", 1)
    _, records, traffic = Setup(slm, slm, draft_tokens=3).generate(make_prompts(VOCAB), 12)
    # An agreeing pair makes three drafts and a token of the LLM a message.
    assert traffic.messages == 3
    assert (records.draft == -1).sum() == 5 * 3
    counts = records.stage_counts()
    assert (counts["llm_accepted"], counts["llm_resampled"]) == (45, 15)


def test_no_more_is_drafted_than_is_wanted():
    slm = random_model("llama", 1)
    texts, records, traffic = Setup(slm, slm, draft_tokens=8).generate(make_prompts(VOCAB), 3)
    assert traffic.messages == 1
    assert (records.draft >= 0).all()
    assert (texts.lengths - texts.prompt_lengths == 3).all()


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_the_device_knows_what_the_server_holds(sampling):
    slm = random_model("llama", 1)
    llm = relative(slm, 0.1)
    setup = Setup(slm, llm, sampling)
    prefixes = []
    exchange = setup.uplink.link.transport.exchange

    def watched(payload):
        answer = exchange(payload)
        prefixes.append([setup.engine.held(setup.key(s)) for s in range(4)])
        return answer

    setup.link.exchange = watched
    texts, _, traffic = setup.generate(make_prompts(VOCAB, 4), STEPS)
    held = [setup.engine.held(setup.key(session)) for session in range(4)]
    assert prefixes[-1] == held == setup.uplink.sender.held(texts).tolist()
    for session in range(4):
        held = setup.engine._sessions[setup.key(session)].tokens
        assert held.tolist() == texts.text(session)[: len(held)].tolist()
    assert traffic.messages == len(prefixes)


def test_texts_end_at_their_end_token():
    slm = random_model("llama", 1)
    llm = relative(slm, 0.1)
    prompts = make_prompts(VOCAB, 6)
    ends = frozenset(own_text(llm, prompt, STEPS)[3] for prompt in prompts)
    for sampling in (GREEDY, SAMPLED):
        plain = build(slm, llm, ThresholdPolicy(-1), sampling, end_tokens=ends)
        expected, _, _ = plain.generate(prompts, STEPS)
        texts, records, _ = Setup(slm, llm, sampling, ends=ends).generate(prompts, STEPS)
        for row in range(6):
            assert new_part(texts, row) == new_part(expected, row)
        assert records.tokens == sum(len(new_part(texts, row)) for row in range(6)) < 6 * STEPS


def test_a_forgotten_text_is_sent_again():
    slm = random_model("llama", 1)
    llm = relative(slm, 0.1)
    setup = Setup(slm, llm)
    exchange = setup.link.exchange

    def forgetful(payload):
        if setup.link.calls in (1, 4):
            setup.engine.forget(setup.key(1))
        return exchange(payload)

    setup.uplink.link.transport = type("Forgetful", (), {"exchange": staticmethod(forgetful)})
    prompts = make_prompts(VOCAB, 3)
    texts, _, traffic = setup.generate(prompts, STEPS)
    for row, prompt in enumerate(prompts):
        assert new_part(texts, row) == own_text(llm, prompt, STEPS)
    assert traffic.failures == 0


def test_without_a_link_the_text_is_the_slms_own():
    slm, llm = random_model("llama", 1), random_model("llama", 2)
    prompts = make_prompts(VOCAB, 3)
    setup = Setup(slm, llm)
    setup.link.down = True
    texts, records, traffic = setup.generate(prompts, STEPS)
    for row, prompt in enumerate(prompts):
        assert new_part(texts, row) == own_text(slm, prompt, STEPS)
    assert records.stage_counts()["unresolved"] == 3 * STEPS
    assert traffic.failures > 0
    assert traffic.uplink == 0


def test_after_a_lost_answer_the_text_goes_on_from_what_was_kept():
    slm = random_model("llama", 1)
    llm = relative(slm, 0.1)
    setup = Setup(slm, llm, draft_tokens=2)
    setup.link.fail_at = {2}
    (prompt,) = make_prompts(VOCAB, 1)
    texts, records, _ = setup.generate([prompt], STEPS)
    stages = records.stage[0]
    lost = np.flatnonzero(stages == Stage.UNRESOLVED)
    assert 1 <= len(lost) <= 2
    after = int(lost[-1]) + 1
    kept = texts.text(0)[: len(prompt) + after]
    assert new_part(texts, 0)[after:] == own_text(llm, kept, STEPS - after)


def test_a_text_longer_than_the_llms_context_ends_unresolved():
    slm = random_model("llama", 1)
    llm = relative(slm, 0.1)
    prompt = np.array([5, 9, 2])
    texts, records, _ = Setup(slm, llm, context=9).generate([prompt], 12)
    own = own_text(llm, prompt, 12)
    resolved = int((records.stage[0] != Stage.UNRESOLVED).sum())
    assert 6 <= resolved < 12
    assert new_part(texts, 0)[:resolved] == own[:resolved]
    assert (records.stage[0, resolved:] == Stage.UNRESOLVED).all()


def test_feedback_tells_of_every_draft_that_was_reached():
    slm = random_model("llama", 1)
    llm = relative(slm, 0.1)
    texts, records, _ = Setup(slm, llm).generate(make_prompts(VOCAB, 3), STEPS)
    for row, step in zip(*np.nonzero(records.present), strict=True):
        draft = records.draft[row, step]
        if draft < 0:
            assert np.isnan(records.log_prob[row, step])
            assert np.isnan(records.uncertainty[row, step])
            continue
        context = texts.text(row)[: records.position[row, step]]
        with torch.inference_mode():
            y = llm(torch.from_numpy(context)[None]).logits[0, -1].log_softmax(-1)
        expected = max(float(y[draft]), -127 / 8)
        assert records.log_prob[row, step] == pytest.approx(expected, abs=1 / 16 + 1e-3)
        assert records.draft_choice[row, step] == int(y.argmax() == draft)


def test_unknown_methods_and_empty_blocks_are_refused():
    slm = random_model("llama", 1)
    with pytest.raises(ValueError, match=r"verifier = 'full'.*coupled, greedy"):
        Setup(slm, slm, SAMPLED, "full")
    with pytest.raises(ValueError, match="draft_tokens = 0"):
        Setup(slm, slm, draft_tokens=0)


def in_lockstep(model, prompts):
    return LockstepDecoder(model, prompts, shrinks=True)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("make", [in_lockstep, rollback_decoder])
def test_going_back_leaves_no_trace(architecture, make):
    model = random_model(architecture, 1)
    generator = np.random.default_rng(0)
    texts = [generator.integers(1, VOCAB, size).tolist() for size in (3, 5, 4)]
    decoder = make(model, [np.array(text) for text in texts])
    decoder.start()
    for number in range(12):
        counts, tokens = generator.integers(0, 3, 3), generator.integers(1, VOCAB, (3, 2))
        if number == 6:
            decoder.keep_rows(np.array([0, 2]))
            texts = [texts[0], texts[2]]
        counts, tokens = counts[: len(texts)], tokens[: len(texts)]
        counts[number % len(texts)] = 1
        step = decoder.read(tokens, counts)
        for row, count in enumerate(counts):
            texts[row] += tokens[row, 2 - count :].tolist()
            if count:
                with torch.inference_mode():
                    own = model(torch.tensor([texts[row]])).logits[0, -1]
                assert torch.allclose(own, step.logits[row], atol=1e-3)
        back = np.minimum(generator.integers(0, 3, len(texts)), decoder.lengths - 1)
        decoder.take_back(back)
        texts = [text[: len(text) - n] for text, n in zip(texts, back, strict=True)]
        assert decoder.lengths.tolist() == [len(text) for text in texts]
    with pytest.raises(ValueError, match="counts"):
        decoder.take_back(decoder.lengths)


def test_top_p_and_temperature_reach_the_llm():
    slm = random_model("llama", 1)
    llm = relative(slm, 0.1)
    sampling = Sampling("sampled", temperature=0.7, top_p=0.8)
    prompts = make_prompts(VOCAB, 4)
    own, _, _ = build(llm, llm, ThresholdPolicy(1.0), sampling).generate(prompts, STEPS)
    texts, _, _ = Setup(slm, llm, sampling).generate(prompts, STEPS)
    assert np.array_equal(texts.tokens, own.tokens)
