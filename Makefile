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

.PHONY: help setup demo test compat matrix eval bench lint generate train clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## environment, requirements, ROS 2, colcon build
	@python3 -IS tools/setup.py

demo: ## a model stacks blocks over ROS 2, three episodes
	@./vla demo $(ARGS)

test: ## all tests (ARGS="-m 'not slow'" leaves out the long ones)
	@python3 -IS tools/setup.py --tests
	@. .venv/vla_env.sh && python3 tools/run_tests.py $(ARGS)

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

lint: ## ruff, checks and format; figures and options in the pages against results and code
	@python3 -IS tools/setup.py --dev
	@. .venv/vla_env.sh && ruff check . && ruff format --check . && \
	  python3 tools/figures.py --check && python3 tools/options_page.py --check

generate: ## demonstrations of TASK (ARGS as in ./vla generate --help)
	@./vla generate --task $(TASK) $(ARGS)

train: ## train a model (ARGS as in ./vla train --help)
	@./vla train $(ARGS)

clean: ## remove what was built; the environment in .venv stays
	rm -rf build install log .venv/.vla/build .pytest_cache .ruff_cache .hypothesis
