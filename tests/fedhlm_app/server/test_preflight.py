from __future__ import annotations

import errno
import json
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from fedhlm_app.cli import app
from fedhlm_app.cli import run as run_module
from fedhlm_app.models.sources import BUILTIN
from fedhlm_app.models.vocabulary import token_ids, vocabulary_size
from fedhlm_app.results.runs import RunFolder
from fedhlm_app.server import preflight
from fedhlm_app.settings import Settings
from fedhlm_assets import asset_path
from tests.models import random_model


def check(**changes):
    given = {key.replace("_", "-"): value for key, value in changes.items()}
    preflight.check(Settings.from_sources(given, {}))


def write_items(folder, rows):
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_defaults_pass():
    check()


def test_the_defaults_are_checked_without_pytorch():
    code = (
        "import sys\n"
        "from fedhlm_app.server import preflight, rounds\n"
        "from fedhlm_app.settings import Settings\n"
        "preflight.check(Settings.from_sources({'preset': 'fedhlm'}, {}))\n"
        "sys.exit(', '.join(sorted({'torch', 'transformers'} & sys.modules.keys())) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # What is not looked up there.
    assert vocabulary_size(BUILTIN) == token_ids(BUILTIN)


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValueError, match="clinets"):
        check(clinets=3)


def test_a_value_out_of_range_is_refused():
    with pytest.raises(ValueError, match="rounds"):
        check(rounds=0)


def test_more_clusters_than_clients_are_refused():
    with pytest.raises(ValueError, match="clusters"):
        check(clients=3, clusters=4)


def test_a_missing_file_is_refused():
    with pytest.raises(ValueError, match="no/such/file"):
        check(dataset="/no/such/file.csv")


def test_a_missing_column_is_refused(tmp_path):
    path = write_items(tmp_path, [{"text": "a b c", "label": 0}] * 50)
    with pytest.raises(ValueError, match="headline"):
        check(dataset=path, text_columns="headline")


def test_an_empty_dataset_is_refused(tmp_path):
    path = write_items(tmp_path, [{"text": "  ", "label": 0}] * 5)
    with pytest.raises(ValueError, match="no text"):
        check(dataset=path)


def test_fewer_items_than_clients_are_refused(tmp_path):
    path = write_items(tmp_path, [{"text": "a b c", "label": 0}] * 5)
    with pytest.raises(ValueError, match="clients = 20"):
        check(dataset=path)


def test_a_context_longer_than_the_model_allows_is_refused():
    with pytest.raises(ValueError, match="128"):
        check(prompt_tokens=100, tokens_per_prompt=60, tokens_per_round=60)


def test_different_tokenizers_are_refused_with_both_named(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    other = tmp_path / "other"
    vocabulary = {f"word{number}": number for number in range(64)}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="word0"))
    PreTrainedTokenizerFast(tokenizer_object=plain).save_pretrained(other)
    random_model("llama").save_pretrained(other)
    with pytest.raises(ValueError, match="builtin") as error:
        check(llm=str(other))
    assert str(other) in str(error.value)


def test_nothing_is_loaded_before_the_checks(monkeypatch, tmp_path):
    # A pair whose weights cannot be read passes: the checks look at configs and tokenizers only.
    folder = tmp_path / "pair"
    shutil.copytree(asset_path("pair/llm"), folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if asset_path("pair").joinpath(name).exists():
            shutil.copy(asset_path("pair").joinpath(name), folder / name)
    (folder / "model.safetensors").write_bytes(b"not weights")
    check(llm=str(folder))


@pytest.fixture
def command(monkeypatch, tmp_path):
    """The command line in an empty folder, on a machine without accelerator; nothing starts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(run_module, "launch", lambda *_, **__: pytest.fail("Flower was started"))
    (tmp_path / "empty.csv").touch()
    (tmp_path / "blank.jsonl").write_text("\n\n")
    (tmp_path / "header.csv").write_text("text,label\n")
    (tmp_path / "cut.csv.gz").write_bytes(b"\x1f\x8b\x08\x00\x00")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00text")
    (tmp_path / "latin.csv").write_text("text,label\nZürich,1\n" * 99, "latin-1")
    (tmp_path / "one.csv").write_text("text,label\na b c,1\n")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "nodata").mkdir()
    (tmp_path / "nodata" / "notes.txt").touch()
    (tmp_path / "test-only").mkdir()
    (tmp_path / "test-only" / "train.csv").write_text("text,label\na b c,1\n")
    whole = tmp_path / "whole"
    shutil.copytree(asset_path("pair/llm"), whole)
    shutil.copy(asset_path("pair").joinpath("tokenizer.json"), whole)
    for part in ("config.json", "tokenizer.json", "model.safetensors"):
        shutil.copytree(whole, tmp_path / f"no-{part}")
        (tmp_path / f"no-{part}" / part).unlink()

    def call(*words):
        answer = CliRunner().invoke(app, list(words))
        # An exception that got out would be a trace.
        assert answer.exception is None or isinstance(answer.exception, SystemExit)
        return answer

    return call


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("device=cuda", "setting 'device' = 'cuda': PyTorch finds no such device here"),
        ("device=cuda:9", "allowed on this machine: cpu, auto"),
        ("device=mps", "setting 'device' = 'mps'"),
        ("llm-device=cuda", "setting 'llm-device' = 'cuda'"),
        ("llm-backend=engine:fast", "'engine:fast' is not allowed: engine, or engine:MS"),
        ("llm-backend=engine:-1", "'engine:-1' is not allowed: engine, or engine:MS"),
        ("llm-backend=vlm", "setting 'llm-backend' = 'vlm' is not allowed: one of engine"),
        ("edge-rule=krummm", "setting 'edge-rule' = 'krummm' is not allowed: one of bulyan, "),
        ("edge-rule=krummm", "; did you mean 'krum'?"),
        ("edge-rule=mean", "now called weighted-mean (by n_k, eq. 7) or unweighted-mean (eq. 8)"),
        (
            "cloud-rule=uniform",
            "'uniform' is not allowed: now called unweighted-mean",
        ),
        ("cloud-rule=fedmedien", "did you mean 'fedmedian'?"),
        ("dataset=empty.csv", "empty.csv' is empty; at least one item is needed"),
        ("dataset=blank.jsonl", "blank.jsonl' is empty; at least one item is needed"),
        ("dataset=header.csv", "header.csv' holds no data below its header"),
        ("dataset=cut.csv.gz", "cut.csv.gz' cannot be read: Compressed file ended"),
        ("dataset=bytes.csv", "bytes.csv' cannot be read: it is no UTF-8 text (invalid start byte"),
        ("dataset=latin.csv", "latin.csv' cannot be read: it is no UTF-8 text"),
        ("dataset=one.csv", "one.csv (train) has 1; give it more items"),
        ("dataset=./gone.csv", "gone.csv': no such file or folder"),
        ("dataset=nodata", "nodata' holds no file for split 'train'"),
        (
            "text-columns=headline",
            "text-columns = 'headline'; allowed are the dataset's columns id, topic",
        ),
        ("slm=no-config.json", "no-config.json' is no model: it has no config"),
        ("llm=no-tokenizer.json", "no-tokenizer.json' is no model: it has no tokenizer"),
        ("llm=no-model.safetensors", "no-model.safetensors' is no model: it has no weights"),
        ("slm=./empty.csv", "empty.csv' is no model"),
        ("slm=./adapter", "adapter' is an adapter (adapter_config.json) without its model"),
        ("run-dir=empty.csv/runs", "empty.csv' is not a folder"),
    ],
)
def test_a_run_that_cannot_work_ends_in_one_line_before_anything_starts(
    command, setting, says, monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    answer = command("run", "--set", setting)
    trace = (tmp_path / "cache" / "fedhlm" / "last-error.log").read_text("utf-8")
    assert trace.startswith("Traceback")
    assert answer.exit_code == 2 and answer.stdout == ""
    assert says in answer.stderr
    (line,) = answer.stderr.splitlines()
    assert line.startswith("fedhlm: ")


def test_a_folder_that_may_not_be_written_to_is_refused(command, monkeypatch):
    # The superuser may write nearly anywhere.
    def refuse(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(preflight.tempfile, "TemporaryDirectory", refuse)
    answer = command("run", "--set", "run-dir=here")
    assert answer.exit_code == 2 and "may not be written to" in answer.stderr


def test_a_taken_port_is_told_before_a_model_is_loaded(command, monkeypatch):
    loaded = []
    monkeypatch.setattr("fedhlm_app.hosting.llm.build_service", loaded.append)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for words in (["llm"], ["device", "--llm-address", "127.0.0.1:1"]):
            answer = command("serve", *words, "--port", port)
            assert answer.exit_code == 2 and loaded == []
            (line,) = answer.stderr.splitlines()
            assert f"--port {port}: address already in use" in line


def test_a_report_that_cannot_be_written_is_told_in_one_line(command, monkeypatch, tmp_path):
    folder = RunFolder.create(Settings.from_sources({"run-dir": str(tmp_path / "runs")}, {}), {})

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied", "report.html")

    monkeypatch.setattr("fedhlm_app.results.report.page.write_atomically", refuse)
    answer = command("report", str(folder.path))
    assert answer.exit_code == 2 and "report.html" in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


def test_devices_are_those_of_the_machine_that_computes(command):
    elsewhere = {"llm-address": "127.0.0.1:1", "llm-device": "cuda", "device": "cuda"}
    settings = Settings.from_sources(elsewhere, {})
    preflight.check_devices(settings, simulated=False)
    with pytest.raises(ValueError, match="'device' = 'cuda'"):
        preflight.check_devices(settings)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pair", "evaluate", "--dataset", "nodata"], "holds no file for split 'validation'"),
        (["pair", "evaluate", "--dataset", "test-only"], "holds no file for split 'validation'"),
        (["pair", "evaluate", "--dataset", "empty.csv"], "is empty; at least one item"),
        (["pair", "train", "--dataset", "gone.csv", "--out", "x"], "gone.csv' does not exist"),
        (["pair", "pack", "--source", "nodata", "--out", "x"], "give the folder of a model"),
        (["compare", "--set", "device=cuda"], "setting 'device' = 'cuda'"),
        (["sweep", "--grid", "edge-rule=weighted-mean,krummm"], "did you mean 'krum'?"),
        (["serve", "llm", "--set", "llm-device=cuda"], "setting 'llm-device' = 'cuda'"),
        (["serve", "llm", "--llm", "./nodata"], "is no model"),
        (["serve", "device", "--llm-address", "a:1", "-s", "device=mps"], "setting 'device'"),
    ],
)
def test_other_commands_end_in_one_line_too(command, words, says, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    answer = command(*words)
    assert answer.exit_code == 2 and answer.stdout == ""
    # The rest is kept for who wants to know.
    trace = (tmp_path / "cache" / "fedhlm" / "last-error.log").read_text("utf-8")
    assert trace.startswith("Traceback") and "Error: " in trace
    assert says in answer.stderr
    (line,) = answer.stderr.splitlines()
    assert line.startswith("fedhlm: ")
