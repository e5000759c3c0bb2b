# `make demo` and `make test` set up everything they need, in .venv, the first time.
PYTHON ?= python3
RUN := .venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test lint docs bench bench-faults bench-train bench-speed setup clean
help:
	@echo "make demo   search, final and report on text you already have, in about five minutes on two CPU cores"
	@echo "make test   the tests"
	@echo "make lint   ruff and mypy"
	@echo "make docs   the site, from docs/ and the docstrings, in docs/_build"
	@echo "make bench  the benchmarks (minutes to hours; see tests/benchmarks/)"
	@echo "make bench-train   all that is said of training: speed, learning, ablation, oracle, start, text; about four hours of one core"
	@echo "make bench-speed   of these only tokens per second against peers, which it installs, on one thread; about half an hour"
	@echo "make bench-faults  the search killed at 200 random instants, about half an hour"

# The stamp, not the folder: an installation that was cut off is done again.
.venv/ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "budgetlm needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet -r requirements.txt
	$(RUN) -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch .venv/ready

setup: .venv/ready

demo: .venv/ready
	$(RUN) -m budgetlm search --file studies/demo.toml
	$(RUN) -m budgetlm report --study demo
	$(RUN) -m budgetlm final --study demo
	$(RUN) -m budgetlm budget --study demo
	@echo "report:"; $(RUN) -m budgetlm report --study demo

# One thread of NumPy's for each process of tests, of which there are as many as cores.
test: .venv/ready
	OPENBLAS_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist worksteal

lint: .venv/ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy budgetlm

docs: .venv/ready
	$(RUN) -m pip install --quiet -e '.[docs]' --no-build-isolation
	$(RUN) -m sphinx -q -W --keep-going -b html docs docs/_build

# About half an hour: kill -9 at 200 random instants, and what was left after each.
bench-faults: .venv/ready
	$(RUN) -m tests.benchmarks.bench_faults --kills 200

# About half an hour on one thread, which should have a core to itself: taskset -c 1 make bench-speed
bench-speed: .venv/ready
	$(RUN) -m tests.benchmarks.bench_train

# About four hours of one core: two hours the ablation, one the learning; these go on where their results end, and share the cores that there are.
bench-train: bench-speed
	$(RUN) -m tests.benchmarks.bench_train --two-at-once
	@mkdir -p .bench
	$(RUN) -m tests.benchmarks.bench_learning .bench/learning.jsonl
	$(RUN) -m tests.benchmarks.bench_ablation .bench/ablation.jsonl
	$(RUN) -m tests.benchmarks.bench_oracle
	$(RUN) -m tests.benchmarks.bench_start
	$(RUN) -m tests.benchmarks.bench_data

bench: .venv/ready
	@for file in tests/benchmarks/bench_*.py; do echo "== $$file"; $(RUN) -m "tests.benchmarks.$$(basename "$$file" .py)" || exit 1; done

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
