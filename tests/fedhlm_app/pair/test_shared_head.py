"""Distilling behind the LLM's head: which pairs can, what is learned, and what is written."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from fedhlm_app.pair import shared_head
from fedhlm_app.pair.recipe import ModelShape, PairTraining, StageRecipe
from fedhlm_app.pair.sequences import Example, batch_of
from fedhlm_app.pair.shared_head import fold_head, share_head
from fedhlm_app.pair.trainer import StageTrainer, token_losses
from fedhlm_app.pair.training import new_model, run_stage
from tests.models import ARCHITECTURES, random_model

VOCABULARY = 40
RECIPE = StageRecipe(steps=12, peak_rate=1e-2, warmup=3, batch=8, distillation=1.0)


def llm():
    model = new_model(ModelShape(16, 4, 2, 32), VOCABULARY, 32, 1, (0, 1, 2)).eval()
    with torch.no_grad():  # random logits are all alike
        model.get_input_embeddings().weight.mul_(20.0)
    return model


def carved(large, mapped=True):
    """Two layers of four; its head is the LLM's behind a map, rounded as files round it."""
    small = copy.deepcopy(large)
    small.model.layers = small.model.layers[:2]
    small.config.num_hidden_layers = 2
    if mapped:
        small.config.tie_word_embeddings = False
        head = nn.Linear(16, VOCABULARY, bias=False)
        change = torch.eye(16) + 0.3 * torch.randn(
            16, 16, generator=torch.Generator().manual_seed(4)
        )
        head.weight.data = (large.lm_head.weight.data @ change).half().float()
        small.set_output_embeddings(head)
    return small


def texts(count=30):
    generator = np.random.default_rng(3)
    lengths = generator.integers(4, 12, size=count)
    return [Example(generator.integers(3, 30, size=n).astype(np.int32)) for n in lengths]


def logits(model):
    with torch.inference_mode():
        return model(batch_of(texts(), pad=0).tokens).logits


@pytest.mark.parametrize("mapped", [True, False], ids=["fitted", "cut"])
def test_shared_and_folded_again_it_is_the_same_model(mapped):
    large = llm()
    small = carved(large, mapped)
    before = logits(small)
    head = share_head(small, large, texts())
    assert torch.allclose(head.logits(logits(small)), before[..., head.place >= 0], atol=2e-2)
    fold_head(small, large)
    assert torch.allclose(logits(small), before, atol=2e-2)
    assert all(parameter.requires_grad for parameter in small.parameters())
    assert small.get_input_embeddings().weight is not small.get_output_embeddings().weight


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_any_family_is_the_same_model_after_it(family):
    large = random_model(family, vocab=VOCABULARY)
    small = copy.deepcopy(large)
    assert share_head(small, large, texts()) is not None
    fold_head(small, large)
    assert torch.allclose(logits(small), logits(large), atol=1e-3)


def test_read_ahead_in_a_thread_a_batch_has_the_very_logits_it_would_have(tmp_path, monkeypatch):
    read_ahead = []
    ahead = StageTrainer._reading_ahead
    monkeypatch.setattr(
        StageTrainer, "_reading_ahead", lambda *given: read_ahead.append(1) or ahead(*given)
    )
    threads = torch.get_num_threads()
    trained = []
    try:
        for used in (1, 2):
            torch.set_num_threads(used)
            small, large = carved(llm()), llm()
            head = share_head(small, large, texts())
            settings = PairTraining("", str(tmp_path / str(used)), bfloat16=False)
            run_stage("distil", small, RECIPE, texts(), settings, teacher=large, head=head)
            assert len(read_ahead) == (0 if used == 1 else 3)  # 12 steps are three epochs of four
            assert torch.get_num_threads() == used
            trained.append(small)
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(trained[0].parameters(), trained[1].parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_losses_are_over_the_tokens_that_texts_have_or_the_llm_expects_most(monkeypatch):
    monkeypatch.setattr(shared_head, "_TOKENS", 12)
    large = llm()
    head = share_head(carved(large), large, texts())
    counts, expected = np.zeros(VOCABULARY), np.zeros(VOCABULARY)
    for one in texts():  # fewer tokens than are listened to: all of them
        tokens = torch.from_numpy(one.tokens.astype(np.int64))
        counts += np.bincount(one.tokens, minlength=VOCABULARY)
        with torch.inference_mode():
            expected += large(tokens[None]).logits[0, :-1].softmax(-1).sum(0).numpy()
    share = counts / counts.sum() + expected / expected.sum()
    kept = (head.place >= 0).nonzero()[:, 0]
    assert sorted(kept.tolist()) == sorted(np.argsort(-share)[:12].tolist())
    assert sorted(kept.tolist()) != sorted(np.argsort(-counts)[:12].tolist())
    assert head.place[kept].tolist() == list(range(12))
    assert torch.equal(head.weight, large.lm_head.weight[kept])


def test_a_step_is_kl_over_those_tokens(tmp_path, monkeypatch):
    """Against plain PyTorch: the map and the layers learn, the embedding does not."""
    monkeypatch.setattr(shared_head, "_TOKENS", 12)
    large = llm()
    trained, plain = carved(large), carved(large)
    head = share_head(trained, large, texts())
    once = StageRecipe(steps=1, peak_rate=1e-2, warmup=0, batch=30, distillation=1.0)
    settings = PairTraining("", str(tmp_path), bfloat16=False)
    run_stage("distil", trained, once, texts(), settings, teacher=large, head=head)
    share_head(plain, large, texts())
    batch = batch_of(texts(), pad=0)
    where = batch.mask[:, 1:]
    theirs = large(batch.tokens).logits[:, :-1][where][:, head.place >= 0]
    ours = plain(batch.tokens).logits[:, :-1][where] @ head.weight.T
    nn.functional.cross_entropy(ours, theirs.softmax(-1).detach()).backward()
    learning = [p for p in plain.parameters() if p.requires_grad]
    nn.utils.clip_grad_norm_(learning, 1.0)
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in learning if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in learning if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=1e-2,
        betas=(0.9, 0.95),
    )
    optimiser.step()
    for (name, one), other in zip(trained.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-4), name
    assert torch.equal(trained.get_input_embeddings().weight, large.get_input_embeddings().weight)


def test_a_next_token_without_a_logit_leaves_the_llm_alone_to_say():
    ours, theirs = torch.randn(2, 1, 12, generator=torch.Generator().manual_seed(0))
    known = token_losses(ours, torch.tensor([3]), theirs, 0.4)
    unknown = token_losses(ours, torch.tensor([-1]), theirs, 0.4)
    assert torch.allclose(known - unknown, -0.6 * ours.log_softmax(-1)[0, 3])


def test_resumed_weights_equal_uninterrupted_ones_and_other_checkpoints_are_refused(tmp_path):
    large = llm()
    settings = PairTraining("", str(tmp_path), bfloat16=False, checkpoint_every=2)

    def run(small):
        head = share_head(small, large, texts())
        return run_stage("distil", small, RECIPE, texts(), settings, teacher=large, head=head)

    first, again = carved(large), carved(large)
    assert run(first) == run(again)  # which is only read back
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="written with other settings"):
        run_stage("distil", carved(large), RECIPE, texts(), settings, teacher=large)


def test_distilled_it_is_nearer_to_the_llm_and_can_be_taught_further(tmp_path):
    large = llm()
    small = carved(large)

    def distance():
        probs = [logits(model).softmax(-1) for model in (small, large)]
        return float((probs[0] - probs[1]).abs().sum(-1).mean() / 2)

    before = distance()
    head = share_head(small, large, texts())
    settings = PairTraining("", str(tmp_path), bfloat16=False)
    run_stage("distil", small, RECIPE, texts(), settings, teacher=large, head=head)
    fold_head(small, large)
    assert distance() < 0.9 * before
    assert share_head(small, large, texts()) is not None


def test_a_head_of_its_own_another_width_or_capped_logits_stay_as_they_are():
    large = llm()
    own = carved(large)
    with torch.no_grad():
        own.lm_head.weight.add_(torch.randn(VOCABULARY, 16, generator=torch.Generator()))
    before = logits(own)
    assert share_head(own, large, texts()) is None
    assert torch.equal(logits(own), before)
    narrow = new_model(ModelShape(8, 1, 2, 16), VOCABULARY, 32, 1, (0, 1, 2))
    assert share_head(narrow, large, texts()) is None
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=0.5,
    )
    capped = Gemma2ForCausalLM(config)
    with torch.no_grad():
        capped.get_input_embeddings().weight.mul_(20.0)
    assert share_head(copy.deepcopy(capped), capped, texts()) is None
