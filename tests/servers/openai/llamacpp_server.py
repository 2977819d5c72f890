"""The llama.cpp server as the package `xllamacpp` has it: `python -m ... MODEL.gguf`."""

from __future__ import annotations

import sys
import time
from importlib import import_module

# Not among what comes with `dev`: `make test-llamacpp-server` brings it.
xllamacpp = import_module("xllamacpp")
parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.hostnames, parameters.port = ["127.0.0.1"], 0
parameters.n_ctx, parameters.n_parallel = 8192, 8
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(parameters)
print("at", server.listening_address, flush=True)
while True:
    time.sleep(3600)
