# Short names for ./vla and pytest. Each makes the environment it needs; a second call does no
# work twice.
#   make eval TASK=Stack_D2 EPISODES=100 SEED=7 ARGS="--json"

SHELL := /bin/bash
TASK ?= Stack_D0
EPISODES ?= 100
SEED ?= 7
ARGS ?=
BENCHES ?= closed_loop/closed_loop data/generation data/rlds_reader inference/speed
NAMES ?=

.PHONY: help setup demo studio test coverage compat matrix eval bench lint docs generate train clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## environment, requirements, ROS 2, colcon build
	@python3 -IS tools/setup.py

demo: ## a model stacks blocks over ROS 2, three episodes
	@./vla demo $(ARGS)

studio: ## operate the simulation from a browser (ARGS="--port 8090 --browser")
	@./vla studio --preset simulation --results results --data datasets \
	  --verdicts results/studio/verdicts.jsonl $(ARGS)

test: ## all tests (ARGS="-m 'not slow'" leaves out the long ones)
	@python3 -IS tools/setup.py --tests
	@. .venv/vla_env.sh && python3 tools/run_tests.py $(ARGS)

coverage: ## share of the lines that quick tests run (ARGS="-k name" for some of them)
	@python3 -IS tools/setup.py --tests
	@. .venv/vla_env.sh && python3 -m pytest -m "not slow" --cov --cov-report=term $(ARGS)

compat: ## other libraries read what we write, and we what they write (NAMES="torch ...")
	@python3 -IS tools/setup.py --dev
	@. .venv/vla_env.sh && python3 tools/compat.py $(NAMES)

matrix: ## a quick set of tests under Python 3.10 to 3.12, with Jazzy's and Kilted's wheels
	@python3 -IS tools/matrix.py $(ARGS)

eval: ## closed loop: success over EPISODES of TASK from SEED
	@./vla rollout --task $(TASK) --episodes $(EPISODES) --seed $(SEED) $(ARGS)

bench: ## figures, never pass or fail (BENCHES="..." files in bench/)
	@python3 -IS tools/setup.py --dev
	@. .venv/vla_env.sh && for b in $(BENCHES); do \
	  echo "== bench/$$b.py"; python3 "bench/$$b.py" $(ARGS) || exit 1; done

lint: ## ruff, types, spelling; figures and options in the pages against results and code
	@python3 -IS tools/setup.py --dev
	@. .venv/vla_env.sh && ruff check . && ruff format --check . && mypy && \
	  git ls-files -z | xargs -0 codespell -D - -D tools/words.txt && \
	  python3 tools/figures.py --check && python3 tools/options_page.py --check

docs: ## the pages and an API reference as HTML, in build/docs
	@python3 -IS tools/setup.py --docs
	@. .venv/vla_env.sh && for p in vla_inference vla_sim_bridge vla_training vla_studio; do \
	  python3 -m sphinx.ext.apidoc -q -f -e -M -T -o docs/api "src/$$p/$$p" || exit 1; done && \
	  python3 -m sphinx -q -j auto docs build/docs && echo build/docs/index.html

generate: ## demonstrations of TASK (ARGS as in ./vla generate --help)
	@./vla generate --task $(TASK) $(ARGS)

train: ## train a model (ARGS as in ./vla train --help)
	@./vla train $(ARGS)

clean: ## remove what was built; the environment in .venv stays
	rm -rf build install log .venv/.vla/build .pytest_cache .ruff_cache .mypy_cache .hypothesis \
	  .coverage
