"""The written-out forward pass is Transformers' own, and only for the models it is written for."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from hlm.reading import fused as fused_decoder
from hlm.reading.fused import FusedDecoder, can_fuse, joined, plain_linear
from tests.models import ARCHITECTURES, VOCAB, random_model

SMALL = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


class OneText:
    """A text that is read once, from its start."""

    def attend(self, layer, query, key, value):
        by_head = (part.transpose(0, 1)[None] for part in (query, key, value))
        found = functional.scaled_dot_product_attention(*by_head, is_causal=True, enable_gqa=True)
        return found[0].transpose(0, 1).flatten(1)


def predictions(decoder: FusedDecoder, tokens: torch.Tensor) -> torch.Tensor:
    places = torch.arange(len(tokens))
    return decoder.logits(decoder.read(tokens, places, len(tokens), OneText(), places))


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_it_is_the_models_forward_pass(architecture):
    model = random_model(architecture)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(weight)
    assert can_fuse(model)
    tokens = torch.randint(1, VOCAB, (23,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model(tokens[None]).logits[0]
        torch.testing.assert_close(
            predictions(FusedDecoder(model), tokens), expected, atol=1e-4, rtol=1e-3
        )


def test_stretched_rotations_and_long_texts_are_as_in_the_model():
    torch.manual_seed(0)
    rope = {
        "rope_type": "llama3", "factor": 4.0, "rope_theta": 100.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
    }  # fmt: skip
    model = Qwen2ForCausalLM(Qwen2Config(**SMALL, rope_parameters=rope)).eval()
    assert can_fuse(model)
    decoder = FusedDecoder(model)
    for length in (3, 60, 7):
        tokens = torch.randint(1, VOCAB, (length,), generator=torch.Generator().manual_seed(length))
        with torch.inference_mode():
            expected = model(tokens[None]).logits[0]
            torch.testing.assert_close(predictions(decoder, tokens), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name[0] == "g"])
def test_other_families_are_left_alone(architecture):
    assert not can_fuse(random_model(architecture))


def test_what_computes_something_else_is_left_alone(monkeypatch):
    assert can_fuse(MistralForCausalLM(MistralConfig(**SMALL, sliding_window=None)))
    assert not can_fuse(MistralForCausalLM(MistralConfig(**SMALL, sliding_window=8)))
    windows = {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 8}
    assert not can_fuse(Qwen2ForCausalLM(Qwen2Config(**SMALL, **windows)))
    assert not can_fuse(random_model("llama").to(torch.bfloat16))
    grows = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0}
    assert not can_fuse(Qwen2ForCausalLM(Qwen2Config(**SMALL, rope_parameters=grows)))

    class Adapted(nn.Linear):
        pass

    adapted = random_model("llama")
    adapted.model.layers[1].self_attn.k_proj = Adapted(32, 16)
    assert not can_fuse(adapted)
    watched = random_model("llama")
    watched.model.layers[0].register_forward_hook(lambda *seen: None)
    assert not can_fuse(watched)
    monkeypatch.setattr(fused_decoder, "MOST_BYTES", 1000)
    assert not can_fuse(random_model("llama"))


def test_joined_layers_do_the_work_of_each():
    torch.manual_seed(0)
    one, two, three = nn.Linear(8, 4), nn.Linear(8, 6, bias=False), nn.Linear(8, 2)
    rows = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = plain_linear(*joined([one, two, three]))(rows)
        torch.testing.assert_close(found, torch.cat([one(rows), two(rows), three(rows)], dim=1))
    assert joined([two])[1] is None


def test_a_pass_that_was_asked_for_hidden_states_changes_nothing():
    """Transformers leaves its hooks on the model from then on."""
    model = random_model("llama", 5)
    model(input_ids=torch.tensor([[1, 2, 3]]), output_hidden_states=True)
    assert any(part._forward_hooks for part in model.modules())
    assert can_fuse(model)
