"""The decoder of models in GGUF files, by llama.cpp itself (`make test-llamacpp`)."""

import json

import numpy as np
import pytest
import torch

from clients.decoding.llama_cpp_runtime import LlamaCppModel
from clients.decoding.steps import Step
from clients.decoding.ways import _lockstep_trial, _rollback_trial
from fedhlm_app.pair.recipe import ModelShape
from fedhlm_app.pair.training import new_model
from hlm.reading.agreement import Reference
from tests.gguf_files import byte_level, write

pytestmark = pytest.mark.llamacpp
pytest.importorskip("llama_cpp", reason="the extra 'llama' is not installed")


class AsTensors:
    """A decoder whose logits are tensors, as those of the trials are."""

    def __init__(self, decoder) -> None:
        self._decoder = decoder
        self.take_back, self.keep_rows = decoder.take_back, decoder.keep_rows

    def __getattr__(self, name):
        def called(*arguments):
            step = getattr(self._decoder, name)(*arguments)
            return Step(torch.from_numpy(step.logits), None)

        return called


@pytest.fixture(scope="module", params=[0, 8], ids=["tokens", "padded"])
def made(request, tmp_path_factory):
    """A model, and its file with rows that no token uses or without."""
    tokenizer, folder = byte_level(), tmp_path_factory.mktemp("gguf")
    rows, shape = len(tokenizer) + request.param, ModelShape(64, 3, 2, 128)
    model = new_model(shape, rows, 64, seed=3, specials=(0, 1, 2))
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(20.0)  # random logits are all alike
    model.train(False)
    write(folder / "model.gguf", model, tokenizer)
    model.resize_token_embeddings(len(tokenizer))
    model.config.save_pretrained(folder)
    return model, folder / "model.gguf"


@pytest.mark.parametrize("trial", [_lockstep_trial, _rollback_trial])
@pytest.mark.parametrize("at_once", [512, 5])
def test_texts_that_grow_shrink_and_end_are_read_as_the_model_reads_them(
    made, trial, at_once, monkeypatch
):
    monkeypatch.setattr("clients.decoding.llama_cpp_runtime._AT_ONCE", at_once)
    model, file = made
    small = LlamaCppModel(file, 64)
    compared = trial(lambda _, prompts, hidden: AsTensors(small.decoder(prompts)))
    for one in compared(Reference(model, 40)):
        # Keys and values are float16 in llama.cpp.
        assert (one.found - one.expected).abs().max() < 0.01 * one.expected.abs().max(), one.part


def test_lengths_are_told_and_checked(made):
    decoder = LlamaCppModel(made[1], 64).decoder([np.array([1, 2]), np.array([3])])
    decoder.start()
    decoder.read(np.array([[4, 5], [0, 6]]), np.array([2, 1]))
    assert decoder.lengths.tolist() == [4, 2]
    with pytest.raises(ValueError, match="counts = "):
        decoder.take_back(np.array([0, 2]))
    decoder.keep_rows(np.array([1]))
    assert decoder.lengths.tolist() == [2]


def test_a_text_has_room_for_its_context_and_no_more(made):
    model = LlamaCppModel(made[1], 256)
    assert model.context == 64
    model.context = 256  # llama.cpp rounds up to that
    decoder = model.decoder([np.arange(3, 203)])
    decoder.start()
    with pytest.raises(ValueError, match="has room for 256"):
        decoder.read(np.ones((1, 60), np.int64), np.array([60]))


def test_files_that_are_no_model_of_their_folder_are_refused(made, tmp_path):
    whole = made[1].read_bytes()
    config = {"vocab_size": 5, "max_position_embeddings": 9}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name, content, message in (
        ("broken.gguf", whole[:2000], r"broken\.gguf' cannot be read by llama\.cpp"),
        ("other.gguf", whole, r"other\.gguf': has \d+ tokens, its config\.json 5"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            LlamaCppModel(tmp_path / name, 64)
