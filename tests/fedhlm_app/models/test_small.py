"""Models in ONNX by their names, and what they need; nothing here runs one."""

import json

import pytest
from jinja2 import TemplateError

from fedhlm_app.models import sources
from fedhlm_app.models.small import load_small
from fedhlm_app.models.sources import PairError, check_folder, lean_file
from fedhlm_app.models.vocabulary import fingerprint, load_tokenizer
from fedhlm_app.settings import Settings, SettingsError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.onnx").touch()
    (tmp_path / "config.json").write_text("{}")
    load_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_which_names_are_models_in_onnx(folder):
    assert lean_file(str(folder)) == lean_file(str(folder / "model.onnx")) == folder / "model.onnx"
    assert lean_file("builtin") is lean_file("a-hub/name") is lean_file(str(folder.parent)) is None
    # PyTorch's weights beside it: a folder of a hub that has both.
    (folder / "model.safetensors").touch()
    assert lean_file(str(folder)) is None


def test_the_lean_tokenizer_reads_and_writes_as_transformers_does(folder):
    ours, theirs = load_tokenizer(str(folder)), load_tokenizer()
    text = "Shares — of the naïve airline\n\n fell <|topic|> 3.5 %"
    tokens = ours(text, add_special_tokens=False)["input_ids"]
    assert tokens == theirs(text, add_special_tokens=False)["input_ids"]
    for part in (tokens, tokens[:4], [1, *tokens, 2]):
        how = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        assert ours.decode(part, **how) == theirs.decode(part, **how)
    assert ours.bos_token_id == theirs.bos_token_id
    assert fingerprint(str(folder)) == fingerprint("builtin")
    assert ours.chat_template is None


def test_chats_are_put_into_the_template(folder):
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    template += "{% if messages|length > 1 %}{{ raise_exception('too many') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(template)
    load_tokenizer.cache_clear()
    tokenizer = load_tokenizer(str(folder))
    said = [{"role": "user", "content": "hello"}]
    how = {"add_generation_prompt": True, "tokenize": False}
    bos = json.loads((folder / "tokenizer_config.json").read_text())["bos_token"]
    assert tokenizer.apply_chat_template(said, **how) == f"{bos}[user] hello"
    with pytest.raises(TemplateError, match="too many"):
        tokenizer.apply_chat_template(said * 2, **how)


def test_what_is_missing_is_named(folder, monkeypatch):
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    with pytest.raises(PairError, match="needs onnxruntime, which is not installed"):
        check_folder(str(folder), "slm", lean=True)
    with pytest.raises(PairError, match="'builtin' needs PyTorch, which is not installed"):
        check_folder("builtin", "slm", lean=True)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(PairError, match=r"no model: there is no .*tokenizer\.json"):
        check_folder(str(folder), "slm", lean=True)
    with pytest.raises(PairError, match="is in ONNX, which `fedhlm serve device`"):
        check_folder(str(folder), "llm")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"decoding": "sampled", "verification": "full"}, "'verification' = 'full'"),
        ({"cache-mode": "context"}, "'cache-mode' = 'context'"),
        ({"policy": "router"}, "'policy' = 'router'"),
        ({"dtype": "bfloat16"}, "'dtype' = 'bfloat16'"),
    ],
)
def test_what_a_model_in_onnx_cannot_do_is_refused_by_name(folder, changes, named):
    settings = Settings.from_sources({"slm": str(folder), **changes}, {})
    with pytest.raises(SettingsError, match=f"setting {named}.* is in ONNX, which allows"):
        load_small(settings)
