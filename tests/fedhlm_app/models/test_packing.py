"""Packed weights: error bounds, refusals, and a model that survives the round trip."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from fedhlm_app.models.load import load_slm
from fedhlm_app.models.packing import pack_model, pack_state, read_packed, unpack_state
from fedhlm_app.pair.recipe import ModelShape
from fedhlm_app.pair.training import new_model


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 5),
    groups=st.integers(1, 4),
    size=st.integers(1, 9),
    spread=st.sampled_from([1e-4, 1e-2, 1.0, 100.0]),
    seed=st.integers(0, 10_000),
)
def test_a_weight_is_off_by_at_most_half_a_step(rows, groups, size, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, groups * size, generator=generator) * spread
    packed = pack_state({"w": weight}, size)
    assert packed["w.int8"].dtype == torch.int8
    assert packed["w.scale"].shape == (rows, groups)
    error = (unpack_state(packed)["w"] - weight).abs().reshape(rows, groups, size)
    step = packed["w.scale"].float()[:, :, None]
    largest = weight.abs().reshape(rows, groups, size).amax(dim=2, keepdim=True)
    # fp16 rounds the scale by at most 2**-11 of itself, which only the clipped 127 feels in full.
    assert (error <= 0.5 * step + largest * 2**-10).all()


def test_a_group_of_zeros_stays_zero():
    packed = pack_state({"w": torch.zeros(2, 4)}, 2)
    assert torch.equal(unpack_state(packed)["w"], torch.zeros(2, 4))


def test_an_outlier_only_hurts_its_own_group():
    weight = torch.full((1, 8), 0.01)
    weight[0, 0] = 50.0
    restored = unpack_state(pack_state({"w": weight}, 4))["w"]
    assert torch.allclose(restored[0, 4:], weight[0, 4:], rtol=1e-2)


def test_vectors_uneven_rows_and_kept_names_stay_fp16():
    state = {"norm": torch.rand(6), "odd": torch.rand(2, 7), "kept": torch.rand(2, 6)}
    packed = pack_state(state, 3, keep=("kept",))
    assert {name: tensor.dtype for name, tensor in packed.items()} == dict.fromkeys(
        state, torch.float16
    )
    restored = unpack_state(packed)
    assert all(torch.equal(restored[name], state[name].half().float()) for name in state)


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="group_size must be 0 or more, got -1"):
        pack_state({}, -1)
    with pytest.raises(ValueError, match="'w' holds values that are not finite"):
        pack_state({"w": torch.tensor([[float("nan")]])}, 1)
    with pytest.raises(ValueError, match="'w' has integers but no scales"):
        unpack_state({"w.int8": torch.zeros(1, 1, dtype=torch.int8)})
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        pack_model(tmp_path, tmp_path / "out")
    save_file({"w": torch.zeros(1)}, str(tmp_path / "plain.safetensors"))
    with pytest.raises(ValueError, match="says format null"):
        read_packed(tmp_path / "plain.safetensors")


def test_a_packed_model_loads_as_an_ordinary_one(tmp_path):
    model = new_model(ModelShape(16, 1, 2, 32), 300, 64, seed=3, specials=(0, 1, 2))
    model.train(False)
    model.save_pretrained(tmp_path / "plain")
    size = pack_model(tmp_path / "plain", tmp_path / "packed", group_size=8)
    assert size < (tmp_path / "plain" / "model.safetensors").stat().st_size / 2
    packed = load_slm(str(tmp_path / "packed"))
    assert type(packed) is type(model)
    assert not packed.training
    assert {p.dtype for p in packed.parameters()} == {torch.float32}
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        difference = (packed(tokens).logits - model(tokens).logits).abs().max()
    assert difference < 0.02 * model(tokens).logits.abs().max()
