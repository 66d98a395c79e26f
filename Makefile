# Everything here works on a machine with Python >= 3.11 and make; the rest is fetched by `make setup`.
.PHONY: help setup run test test-all test-sqlalchemy20 test-long simulate properties strangers fuzz bench lint format docs docs-serve lock
.NOTPARALLEL:

# Schedules of the pool's simulation: `make simulate N=1000000`, `make simulate SEED=12345` repeats one.
N ?= 100000
LONG_N ?= 50000
# Lists of steps of each property test: `make properties N=2000`.
properties: N = 500
SEED ?=
# Files of tests that run at a time, more than processors: most of their time they wait for clocks and servers.
WORKERS ?= 3
# Suites of other packages: names of tests/strangers/suites.toml, or `quick`. All of them also write their page.
SUITES ?=
# What `make fuzz` tries, a name of tests/fuzz/targets.py, and for how long.
TARGET ?= lexer
SECONDS ?= 60
# Options of the comparison, see `python -m speed --help` in bench/.
BENCH ?=

# What a browser, the simulation and the documentation do is the same on every series of SQLAlchemy, and so is what lies
# below it: Python, drivers and servers are those of the other run. tests/unit/test_repository.py checks the second list.
meets_sqlalchemy := tests/contract tests/faults tests/integration tests/properties tests/telemetry tests/unit
below_sqlalchemy := \
	$(addprefix tests/faults/test_,listener_history live pipeline_cut) \
	$(addprefix tests/integration/test_,connect_leaving connect_open connect_tls embedded_postgres lab_sleepy \
		pipeline_connection pipeline_protocol shared_way testing_plugin) \
	$(addprefix tests/unit/test_,alerts breaker cli cli_advise clock connect_channel_binding connect_names \
		connect_outcome connect_race deadline events fingerprint lab_direction lab_pooler lab_proxy lab_server \
		listener_heartbeat listener_mailbox recorder sharable sqlstate)

python := .venv/bin/python
at_once := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'not quiet'

# Runs tests: an environment's python, and paths and options. What measures, marked `quiet`, comes after the others and
# alone; that needs no locks between the workers, and leaves a measurement both processors. Both parts always run.
define run_tests
@status=0; \
	$(1) -m pytest $(at_once) $(2) || status=1; \
	$(1) -m pytest -m quiet $(2) || status=1; \
	exit $$status
endef

help:
	@echo 'make run       set up, start Postgres and the service on http://127.0.0.1:8000 (HOST, PORT, DATABASE_URL)'
	@echo 'make test      set up and run all tests on the newest SQLAlchemy'
	@echo 'make test-all  the same, then what meets SQLAlchemy on its series 2.0, then the long simulation'
	@echo 'make simulate  the simulation of the pool: N=100000 schedules, or SEED=… to repeat one'
	@echo 'make properties  random uses by several users, compared with SQLAlchemy: N=500 of each kind'
	@echo 'make strangers run the suites of other packages on our engine (an hour; SUITES=quick or by name for some)'
	@echo 'make fuzz      try what no one writes: TARGET=lexer, dsn, log_in or answers, for SECONDS=60'
	@echo 'make bench     compare the speed of everything in one run (about an hour; BENCH=--quick for a look)'
	@echo 'make docs      write what is made from code, and build the documentation into site/ (docs-serve shows it)'
	@echo 'make lint      ruff, pyright, import-linter, deptry'
	@echo 'make format    let ruff format and repair'

setup:
	@sh scripts/setup.sh

run: setup
	@exec $(python) -m backend

test: setup
	@sh scripts/system-packages.sh
	$(call run_tests,$(python),)

test-all: test test-sqlalchemy20 test-long

test-sqlalchemy20:
	@sh scripts/setup.sh sqlalchemy20
	@sh scripts/system-packages.sh
	$(call run_tests,.venv-sqlalchemy20/bin/python,$(meets_sqlalchemy) $(below_sqlalchemy:%=--ignore=%.py))

# Other seeds than the ones that `make test` has run already.
test-long: setup
	cd tests && exec ../$(python) -m simulation $(LONG_N) --first 1000000

simulate: setup
	cd tests && ../$(python) -m simulation $(if $(SEED),--seed $(SEED),$(N))

properties: setup
	PROPERTIES=$(N) $(python) -m pytest tests/properties

strangers: setup
	cd tests && ../$(python) -m strangers $(or $(SUITES),--write)

# Nothing else needs atheris, so it comes into an environment of its own, over .venv.
fuzz: setup
	cd tests && ../.tools/uv-* run --frozen --no-sync --with atheris==3.0.0 python -m fuzz $(TARGET) $(SECONDS)

bench: setup
	cd bench && ../$(python) -m speed $(BENCH)

lint: setup
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pyright
	.venv/bin/lint-imports
	.venv/bin/deptry src
	cd packages/steadypool && ../../.venv/bin/deptry src
	cd packages/steadypool-lab && ../../.venv/bin/deptry src

format: setup
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

docs: setup
	$(python) scripts/generate_docs.py
	.venv/bin/zensical build --clean --strict

docs-serve: setup
	.venv/bin/zensical serve

lock: setup
	.tools/uv-* lock
