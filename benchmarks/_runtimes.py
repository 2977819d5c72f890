"""A small model in PyTorch and as devices without it hold it: time of a step, and agreement.

Run with ``python -m benchmarks._runtimes [--slm builtin]`` where the extra ``onnx`` is installed,
or with ``--slm smollm2`` or a GGUF file where ``llama`` is; writes benchmarks/out/runtimes.json.
It has no LLM, and device and number format are what the runtimes have. Processor time of one
thread, rounds of all taken in turn; agreement in the most likely token is with PyTorch, on articles
of the built-in corpus.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks._report import write_report
from clients.decoding.ways import best_ways, lockstep_decoder
from fedhlm_app.data.items import load_items
from fedhlm_app.models.load import load_slm
from fedhlm_app.models.small import load_lean
from fedhlm_app.models.sources import gguf_file, lean_file
from fedhlm_app.models.vocabulary import load_tokenizer
from fedhlm_app.pair.export import export

PROMPT, STEPS, REPEATS, TEXTS = 16, 80, 6, 40


def seconds_of_a_step(start: Any, texts: list[np.ndarray]) -> tuple[float, np.ndarray]:
    """Processor seconds of each step that reads texts on, and top tokens [steps, rows]."""
    decoder = start([text[:PROMPT] for text in texts])
    decoder.start()
    steps, tops = min(len(text) for text in texts) - PROMPT, []
    begin = time.process_time()
    for at in range(PROMPT, PROMPT + steps):
        logits = decoder.step(np.array([text[at] for text in texts])).logits
        tops.append(np.asarray(logits.argmax(-1)))
    return (time.process_time() - begin) / steps, np.array(tops)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slm", default="builtin")
    slm = parser.parse_args().slm
    torch.set_num_threads(1)
    model, tokenizer = load_slm(slm), load_tokenizer(slm)
    best_ways(model, PROMPT + STEPS)
    found = [tokenizer.encode(text) for text in load_items("builtin", "test").texts()]
    texts = [np.array(one[: PROMPT + STEPS]) for one in found if len(one) >= PROMPT + STEPS // 2]
    with tempfile.TemporaryDirectory() as folder:
        kinds = ("gguf",) if gguf_file(slm) else ("float32", "int8")
        sizes = {n: export(slm, Path(folder) / n, n == "int8") for n in kinds}
        lean = {
            name: load_lean(file, PROMPT + STEPS)
            for name in sizes
            if (file := lean_file(f"{folder}/{name}"))
        }
    starts = {"torch": lambda prompts: lockstep_decoder(model, prompts)}
    starts |= {name: one.decoder for name, one in lean.items()}
    report: dict[str, Any] = {"slm": slm, "bytes": sizes}
    for rows in (1, 8):
        taken = {name: [] for name in starts}
        for _ in range(REPEATS):
            for name, start in starts.items():
                taken[name].append(seconds_of_a_step(start, texts[:rows])[0])
        report[f"ms a step, {rows} texts"] = {n: 1e3 * median(one) for n, one in taken.items()}
    tops = {name: seconds_of_a_step(start, texts[:TEXTS])[1] for name, start in starts.items()}
    report["agreement"] = {name: float((tops[name] == tops["torch"]).mean()) for name in lean}
    report["tokens"] = tops["torch"].size
    write_report("runtimes", report)


if __name__ == "__main__":
    main()
