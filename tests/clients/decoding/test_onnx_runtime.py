"""The decoder of models in ONNX, over a session that PyTorch stands in for."""

import json

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from clients.decoding.onnx_runtime import PAST, OnnxDecoder, OnnxModel
from clients.decoding.steps import Step
from clients.decoding.ways import _lockstep_trial, _rollback_trial
from fedhlm_app.models.load import load_slm
from fedhlm_app.models.vocabulary import load_tokenizer
from hlm.reading.agreement import Reference
from tests.models import ARCHITECTURES, random_model


class InTorch(OnnxModel):
    """What a session of ONNX Runtime does, done by the model that would be exported."""

    def __init__(self, model) -> None:
        self._model, config = model, model.config
        layers = [f"{PAST}.{n}.{part}" for n in range(config.num_hidden_layers) for part in "kv"]
        size = config.hidden_size // config.num_attention_heads
        self._shapes = dict.fromkeys(layers, (None, config.num_key_value_heads, None, size))

    @torch.inference_mode()
    def run(self, inputs):
        assert all(one.flags.c_contiguous for one in inputs.values())
        tensors = {name: torch.from_numpy(one) for name, one in inputs.items()}
        past = [tensors.pop(name) for name in self._shapes]
        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        logits = self._model(**tensors, past_key_values=cache, use_cache=True).logits
        present = [one.numpy() for layer in cache.layers for one in (layer.keys, layer.values)]
        return logits[:, -1].numpy(), dict(zip(self._shapes, present, strict=True))


class AsTensors(OnnxDecoder):
    def _run(self, tokens, positions):
        return Step(torch.from_numpy(super()._run(tokens, positions).logits), None)


@pytest.mark.parametrize("trial", [_lockstep_trial, _rollback_trial])
def test_texts_that_grow_shrink_and_end_are_read_as_the_model_reads_them(trial):
    model = random_model("llama", 3)
    compared = trial(lambda _, prompts, hidden: AsTensors(InTorch(model), prompts))
    for one in compared(Reference(model, 24)):
        assert (one.found - one.expected).abs().max() < 1e-4, one.part


def test_lengths_are_told_and_checked():
    decoder = OnnxDecoder(InTorch(random_model("llama", 3)), [np.array([1, 2]), np.array([3])])
    decoder.start()
    decoder.read(np.array([[4, 5], [0, 6]]), np.array([2, 1]))
    assert decoder.lengths.tolist() == [4, 2]
    with pytest.raises(ValueError, match="counts = "):
        decoder.take_back(np.array([0, 2]))
    decoder.keep_rows(np.array([1]))
    assert decoder.lengths.tolist() == [2]


def test_a_file_that_is_no_model_is_refused(tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    (tmp_path / "config.json").write_text(
        json.dumps({"vocab_size": 5, "max_position_embeddings": 9})
    )
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"model\.onnx' cannot be read"):
        OnnxModel(tmp_path / "model.onnx")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_families_are_exported_and_write_the_same_text(tmp_path, architecture):
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name, reason="the extra 'onnx' is not installed")
    from fedhlm_app.pair.export import export

    random_model(architecture, 5).save_pretrained(tmp_path / "slm")
    load_tokenizer().save_pretrained(tmp_path / "slm")
    export(str(tmp_path / "slm"), tmp_path / "out")
    model, prompt, written = load_slm(str(tmp_path / "slm")), [7, 40, 9], []
    assert not model.training
    decoder = OnnxModel(tmp_path / "out" / "model.onnx").decoder([np.array(prompt)])
    step = decoder.start()
    for _ in range(16):
        written.append(int(step.logits.argmax()))
        step = decoder.step(np.array(written[-1:]))
    with torch.inference_mode():
        for _ in range(16):
            prompt.append(int(model(torch.tensor([prompt])).logits[0, -1].argmax()))
    assert written == prompt[3:]
