# `make demo` and `make test` set up everything they need, in .venv, the first time.
PYTHON ?= python3
RUN := .venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test lint docs bench bench-faults bench-train bench-speed bench-transfer bench-forecast bench-replay bench-search bench-envelope setup clean
help:
	@echo "make demo   search, final and report on text you already have, in about five minutes on two CPU cores"
	@echo "make test   the tests"
	@echo "make lint   ruff and mypy"
	@echo "make docs   the site, from docs/ and the docstrings, in docs/_build"
	@echo "make bench  the benchmarks (minutes to hours; see tests/benchmarks/)"
	@echo "make bench-train   all that is said of training: speed, learning, ablation, oracle, start, text; about four hours of one core"
	@echo "make bench-speed   of these only tokens per second against peers, which it installs, on one thread; about half an hour"
	@echo "make bench-faults  the search killed at 200 random instants, about half an hour"
	@echo "make bench-transfer  what carries over from a cheap run to the target, real training; about two hours of one core"
	@echo "make bench-forecast  forecasts of others' runs (needs ../shared/data), beside what people do; some ten minutes of one core"
	@echo "make bench-replay  searches of others' runs replayed, 30 of each, and the samplers at 20, 60 and 200 runs; about two hours of one core"
	@echo "make bench-search  search against search, real training, three seeds of five contenders; about four hours of one core"
	@echo "make bench-envelope  run --hours 0.5 beside the default recipe for all of it; about an hour of one core"

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

# Real training, about two hours of one core; goes on where its results end.
bench-transfer: .venv/ready
	@mkdir -p .bench
	$(RUN) -m tests.benchmarks.bench_transfer .bench/transfer.jsonl
	$(RUN) -m tests.benchmarks.bench_transfer .bench/transfer.jsonl --table

# Others' finished runs, read from ../shared/data.
bench-forecast: .venv/ready
	$(RUN) -m tests.benchmarks.bench_forecast --each

bench-replay: .venv/ready
	$(RUN) -m tests.benchmarks.bench_replay --samplers forecast tpe qmc random
	$(RUN) -m tests.benchmarks.bench_replay --trials 20 60 200 --seeds 5 --only scalebench_lr

# Of each contender a search of ten minutes and a final of five, three times; goes on where its results end.
bench-search: .venv/ready
	@mkdir -p .bench
	$(RUN) -m tests.benchmarks.bench_search .bench/search.jsonl --seconds 300 --search 2 --seeds 3 --contenders budgetlm hyperband tpe random default

bench-envelope: .venv/ready
	@mkdir -p .bench
	$(RUN) -m tests.benchmarks.bench_envelope .bench/envelope.jsonl --hours 0.5

bench: .venv/ready
	@for file in tests/benchmarks/bench_*.py; do echo "== $$file"; $(RUN) -m "tests.benchmarks.$$(basename "$$file" .py)" || exit 1; done

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
