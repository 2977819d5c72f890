"""A device that has neither PyTorch nor Transformers, nor Flower, Ray or PyArrow."""

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

from fedhlm_app.hosting.llm import build_service
from fedhlm_app.models.load import load_slm
from fedhlm_app.models.vocabulary import fingerprint, load_tokenizer
from servers.service import ServedLanguageModel, ServiceOptions
from tests.checkout import ROOT
from tests.fedhlm_app.serve_device.devices import PROMPT, ask, served, settings, written
from tests.gguf_files import write
from tests.served import serving_app

pytestmark = pytest.mark.slow

PROMPTS = [PROMPT, "The team won its third", "Oil prices rose", "Intel's new chip"]

ABSENT = (
    "torch transformers flwr ray pyarrow datasets scipy sklearn pandas matplotlib safetensors "
    "accelerate flwr_datasets threadpoolctl"
)
LACKING = f"import sys\nsys.modules.update(dict.fromkeys({ABSENT!r}.split()))\n"

NEEDS_TORCH = {
    "clients.decoding": "lockstep lockstep_memory row_memory slm speculative step_features "
    "textwise ways",
    "hlm.reading": "agreement fused plain",
    "hlm.truncation": "count_rules k_star quantising truncate",
    "hlm.verification": "full scalar speculative truncated",
    "hlm": "uncertainty",
}

IMPORT_ALL = """
import importlib, pkgutil, hlm, clients
import fedhlm_app.server.learned  # what `--run` reads
for room in (hlm, clients):
    for module in pkgutil.walk_packages(room.__path__, room.__name__ + "."):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError:
            print(module.name)
"""


def lacking(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", LACKING + code, *arguments]


def test_what_a_device_needs_of_hlm_and_clients_is_imported_without_torch():
    done = subprocess.run(lacking(IMPORT_ALL), cwd=ROOT, capture_output=True, text=True, check=True)
    expected = {f"{room}.{name}" for room, names in NEEDS_TORCH.items() for name in names.split()}
    assert set(done.stdout.split()) == expected


@contextmanager
def lean_device(slm, llm_port: int, *words: str):
    """`fedhlm serve device` in a process without PyTorch; its port."""
    command = ["serve", "device", "--slm", str(slm), "--port", "0", "--client", "5", *words]
    command += ["--llm-address", f"127.0.0.1:{llm_port}"]
    code = "from fedhlm_app.cli import main\nsys.argv[0] = 'fedhlm'\nmain()"
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        lacking(code, *command), cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("serving device 5 at"), line
        yield int(line.split(" at ")[1].split()[0].rpartition(":")[2])
    finally:
        process.terminate()
        assert process.wait(120) == 0
        process.stdout.close()


def in_onnx(folder):
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name, reason="the extra 'onnx' is not installed")
    from fedhlm_app.pair.export import export

    export("builtin", folder)


def in_gguf(folder):
    pytest.importorskip("llama_cpp", reason="the extra 'llama' is not installed")
    tokenizer, model = load_tokenizer(), load_slm("builtin")
    write(folder / "model.gguf", model, tokenizer)
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "apart"),
    [
        # float32 logits of two runtimes: about 1e-6 apart.
        (in_onnx, 1e-4),
        # Keys and values are float16 in llama.cpp.
        pytest.param(in_gguf, 1e-2, marks=pytest.mark.llamacpp),
    ],
)
@pytest.mark.parametrize("decoding", ["greedy", "sampled"])
def test_it_writes_what_a_device_with_torch_writes(tmp_path, decoding, kind, apart):
    kind(tmp_path)
    # A token at a time: how far a stream runs ahead of its reader is a matter of time.
    changes = {"decoding": decoding, "escalation": "token", "initial-threshold": 0.8}
    changes["learning"] = "none"
    words = [word for name, value in changes.items() for word in ("-s", f"{name}={value}")]
    texts = served(build_service(settings(**changes)), **changes)
    theirs = [written(texts, prompt, 24) for prompt in PROMPTS]
    local = sum(one.stages["local"] for one in theirs)
    assert 0 < local < sum(len(one.tokens) for one in theirs)
    llm, tokenizer = build_service(settings(**changes)), fingerprint("builtin")
    app = ServedLanguageModel(llm, ServiceOptions(), "builtin", tokenizer=tokenizer).app
    with serving_app(app) as llm_port, lean_device(tmp_path, llm_port, *words) as port:
        for prompt, expected in zip(PROMPTS, theirs, strict=True):
            body = {"model": "fedhlm", "prompt": prompt, "max_tokens": 24}
            status, answer = ask(port, "/v1/completions", body)
            assert status == 200, answer
            assert answer["choices"][0]["text"] == expected.text
            told = answer["fedhlm"]
            assert told["stages"] == expected.stages
            traffic = expected.routed.traffic
            assert told["bytes"] == {"uplink": traffic.uplink, "downlink": traffic.downlink}
            for one, other in zip(told["tokens"], expected.tokens, strict=True):
                assert one["uncertainty"] == pytest.approx(other.uncertainty, abs=apart)
