from __future__ import annotations

import pytest
import torch
from torch import nn

from servers.engine import packed_linear
from servers.engine.packed_linear import PackedLinear, can_pack, packed_twin
from tests.models import ARCHITECTURES, VOCAB, random_model

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of torch is without oneDNN"
)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (7, 24), (1, 40, 24), (2, 3, 24)])
def test_a_packed_layer_computes_what_the_plain_one_does(bias, shape):
    torch.manual_seed(0)
    plain = nn.Linear(24, 56, bias=bias)
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(plain)(rows), plain(rows), atol=1e-5, rtol=1e-5)


@needs_onednn
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_twin_predicts_the_same_and_leaves_the_model_alone(architecture):
    model = random_model(architecture)
    modules = [type(module) for module in model.modules()]
    twin = packed_twin(model)
    tokens = torch.arange(1, 21)[None]
    with torch.inference_mode():
        expected, found = model(tokens).logits, twin(tokens).logits
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)
    assert [type(module) for module in model.modules()] == modules
    own = {weight.data_ptr() for weight in model.parameters()}
    assert {weight.data_ptr() for weight in twin.parameters()} == own
    packed = [module for module in twin.modules() if isinstance(module, PackedLinear)]
    plain = [module for module in model.modules() if type(module) is nn.Linear]
    assert len(packed) == len(plain) > 0
    assert packed[-1].out_features == VOCAB


@needs_onednn
def test_a_twin_has_a_configuration_of_its_own():
    model = random_model("llama")
    packed_twin(model).set_attn_implementation("eager")
    assert model.config._attn_implementation == "sdpa"


def test_what_cannot_be_packed_is_read_as_it_is(monkeypatch):
    model = random_model("llama").to(torch.bfloat16)
    assert not can_pack(model)
    assert packed_twin(model) is model
    monkeypatch.setattr(packed_linear, "MOST_BYTES", 1000)
    assert not can_pack(random_model("llama"))
