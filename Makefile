PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Written when the installation is complete, so that every later call skips it.
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow test-pythons docs bench lint clean

demo: $(INSTALLED)
	$(BIN)/sb3-softmod demo

# A process for each core, and each test file in one of them: the tests of a file share what is slow to make. The files
# begin in the order of tests/conftest.py, the longest first.
test: $(INSTALLED) lint docs
	$(BIN)/python -m pytest -m "not slow" -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# One after the other: some of them measure memory, or take all cores.
test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

# On every Python from 3.10 to 3.13, by pyenv, each in an environment of its own, .venv-3.10 and so on.
PYENV ?= $(or $(PYENV_ROOT),$(HOME)/.pyenv)
test-pythons:
	@for minor in 10 11 12 13; do \
		python=$$(ls -d $(PYENV)/versions/3.$$minor.*/bin/python 2>/dev/null | sort -V | tail -1); \
		[ -n "$$python" ] || { echo "There is no Python 3.$$minor in $(PYENV)/versions: pyenv install 3.$$minor"; exit 1; }; \
		name=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
		echo "Python $$name ($$python)"; \
		$(MAKE) --no-print-directory test PYTHON=$$python VENV=.venv-$$name || exit 1; \
	done

# Into docs/_build/html; every warning is an error.
docs: $(INSTALLED)
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs docs/_build/html

# Into bench/; those that the documents quote are in benchmarks/results. Some 16 minutes on 2 cores, on which nothing else
# should run.
bench: $(INSTALLED)
	$(BIN)/python benchmarks/learner.py --out bench/learner.json
	$(BIN)/python benchmarks/peer_jax.py --options plain bf16 --out bench/peer_jax.json
	$(BIN)/python benchmarks/methods.py --methods softmod_shallow softmod_deep softmod_official --out bench/methods.json
	$(BIN)/python benchmarks/memory.py --out bench/memory.json
	$(BIN)/python benchmarks/end_to_end.py --out bench/end_to_end.json
	$(BIN)/python benchmarks/vec_env.py --sets MT10 --rounds 3 --seconds 2

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "$(PYTHON) is no Python of 3.10 to 3.13: say which one is, as in make demo PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .venv-3.* bench demo docs/_build docs/notebooks .mypy_cache .pytest_cache .ruff_cache
