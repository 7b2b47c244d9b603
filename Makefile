# From a clean clone: `make demo` studies the embedded model, `make test` runs every test. Both make .venv themselves.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help demo test check docs bench zoo clean

help: ## Show these targets.
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r target does; do \
		printf '  make %-7s %s\n' "$$target" "$$does"; done

demo: $(READY) ## Study how an embedded language model finds the receiver of a gift; writes demo-report/report.html.
	$(BIN)/cutaway study ioi --model babel --out demo-report
	@echo "Open demo-report/report.html in a browser; verify it with: $(BIN)/cutaway verify demo-report"

test: $(READY) ## Run the tests (CPU, offline, minutes), one process a core and one thread each.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

check: $(READY) ## Check format, lint, types, import directions and freshness of the generated pages.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest tests/laws/test_imports.py
	$(BIN)/python docs/generate.py --check

docs: $(READY) ## Write the generated pages anew (docs/cli.md, docs/errors.md).
	$(BIN)/python docs/generate.py

bench: $(READY) ## Measure cutaway beside other tools, each in an environment of its own; writes docs/benchmarks.md.
	$(BIN)/python benchmarks/bench.py

zoo: $(READY) ## Train every model of the zoo again, into build/zoo; the shipped ones stay as they are.
	@echo 'Each recipe in src/cutaway/zoo/recipes says at its head what it costs; all together it is hours on two cores.'
	rm -rf build/zoo
	$(BIN)/cutaway zoo train --all --out build/zoo --threads 2

clean: ## Remove what these targets made, the environment included.
	rm -rf .venv demo-report .demo-report.steps .ruff_cache .pytest_cache build dist
	find src tests docs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"cutaway needs Python 3.11 or newer; $(PYTHON) is {v[0]}.{v[1]}. Name another: make PYTHON=python3.12")'
	@echo 'Making .venv: the pinned packages are fetched and installed once, in a minute or two.'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
