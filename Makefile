# Everything a developer needs. `make help` lists it. All of it runs in .venv, which is made on first use.
PYTHON ?= python3
BIN := .venv/bin
# Two test processes of one thread each: the tiny models of the tests gain nothing from more threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

.DEFAULT_GOAL := help
.PHONY: help install demo test acceptance matrix bench bench-accuracy study report-accuracy cards bench-compare docs docs-links check format lint clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/.installed  ## make .venv with the exact versions of constraints.txt (about 6 GB)

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt -e '.[demo,dev]'
	@touch $@

demo: install  ## tune a real vision transformer on real photographs, on the CPU
	$(BIN)/sensitune demo

test: install  ## run the tests
	$(PYTEST)

acceptance: install  ## run PEFT's own tests, unedited, against SPT (downloads its sources once; 3 minutes)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[acceptance]'
	OMP_NUM_THREADS=1 $(BIN)/python tests/acceptance/run.py

matrix: install  ## run the core's tests with the lowest and the newest releases on each Python (an hour; 25 GB)
	$(BIN)/python tests/matrix.py

# Fair only on a machine with nothing else to do; `make bench BENCH="--clock cpu --threads 1"` on one that is shared.
BENCH ?= --clock wall
BENCHMARKS := import_time allocate_speed allocate_scale score_dtype sensitivity_speed adapter_cost step_cost

bench: install  ## measure time and memory against PEFT's methods, into benchmarks/results (20 minutes)
	@for name in $(BENCHMARKS); do \
	  echo "== $$name"; \
	  $(BIN)/python benchmarks/speed/$$name.py $(BENCH) --output benchmarks/results/$$name.json || exit 1; \
	done

# The accuracy suite in resumable pieces: interrupt it at will, the same command goes on.
bench-accuracy: install  ## methods at one budget on eleven small tasks (4 hours on 2 CPU cores; needs apt-get and npm)
	$(BIN)/python benchmarks/accuracy/prepare.py
	TIMM_FUSED_ATTN=0 $(BIN)/sensitune sweep benchmarks/accuracy/cpu.yaml --output runs/accuracy/cpu --workers 2
	TIMM_FUSED_ATTN=0 $(BIN)/python benchmarks/accuracy/adapter_plus.py benchmarks/accuracy/cpu.yaml \
	  --output runs/accuracy/adapter_plus --workers 2
	$(BIN)/python benchmarks/accuracy/report.py benchmarks/accuracy/cpu.yaml runs/accuracy/cpu \
	  --ours "SPT-LoRA, preset best" SPT-LoRA --also runs/accuracy/adapter_plus/results.json \
	  --output benchmarks/results/accuracy_cpu.json

# Every run is a row in benchmarks/results/accuracy_long.jsonl: interrupt it at will, on any machine the rest goes on.
STUDY := long_probe long_start long_regularisation long long_draws
study: install  ## the long profile: what is left of some 600 runs of minutes each (needs apt-get and npm)
	$(BIN)/python benchmarks/accuracy/prepare.py
	$(BIN)/python benchmarks/accuracy/shrink.py --image-size 70
	@for name in $(STUDY); do \
	  TIMM_FUSED_ATTN=0 $(BIN)/python benchmarks/accuracy/study.py benchmarks/accuracy/$$name.yaml \
	    --rows benchmarks/results/accuracy_long.jsonl || exit 1; \
	done

report-accuracy: install  ## compute the study's tables from its rows, into docs/accuracy.md
	$(BIN)/python benchmarks/accuracy/tables.py

CARDS :=
cards: install  ## compute where the sensitive parameters of known models are, into docs/cards (20 minutes; CARDS="minilm" for one)
	$(BIN)/python benchmarks/accuracy/cards.py $(if $(CARDS),--only $(CARDS))

bench-compare: install  ## hold what `make bench` measured against the committed results and the bars
	@$(BIN)/python benchmarks/speed/compare.py

# `make docs ONLINE=1` also links into torch, transformers, PEFT and timm; it fails where their inventories cannot be had.
SPHINX = SENSITUNE_DOCS_ONLINE=$(ONLINE) OMP_NUM_THREADS=1 $(BIN)/sphinx-build -W --keep-going -q

docs: install  ## build the documentation site into build/site, without a network (ONLINE=1: with links to other projects)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'
	$(SPHINX) -b html docs build/site
	@echo "build/site/index.html"

docs-links: install  ## look whether every address on the site answers (needs a network)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'
	$(SPHINX) -b linkcheck docs build/links

lint: install  ## formatting, lint, types and the import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint  ## lint, then the tests; stops at the first that fails
	$(PYTEST)

format: install  ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv, caches and build outputs
	rm -rf .venv .cache dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
