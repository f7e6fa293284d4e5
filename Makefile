# make demo   the sample exported, at work on pages      make test      the tests, on the CPU
# make lint   ruff, language, mypy                      make test-all  with those that are marked exhaustive, as CI runs them
# make docs   the documentation as a site in build/site
# make clean  forget .venv and the caches
# make bindings  TensorRT's, CUDA's and pycuda's Python bindings under build/, for the tests that our code fits them
# make matrix  the runtime on every onnxruntime that pyproject.toml allows, in environments of their own under build/
# make sample rebuild the shipped checkpoint and package from EE_DATA (an hour on two processors)
#
# Each sets up .venv first where there is none, or where this file or pyproject.toml is newer than it.

SHELL := /bin/bash
PYTHON ?= python3
EE_DATA ?= $(abspath $(wildcard ../shared/data/pages))
# The pin of pyproject.toml's extra `cpu`, torch==…+cpu: the build without CUDA. If pip's index has none, PyTorch's own has.
TORCH := $(shell sed -n 's/^ *"\(torch==.*+cpu.*\)",$$/\1/p' pyproject.toml)
CPU_WHEELS := https://download.pytorch.org/whl/cpu
PIP_INSTALL := .venv/bin/python -m pip install -qq --no-input
HAS_VENV := $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.PHONY: demo test test-all lint bindings matrix docs sample clean

demo: .venv/.ready
	@.venv/bin/ee-export demo

# EE_DATA names a folder of real pages; without one, the tests that need it skip and say so. Likewise for a binding.
# pycuda, which is compiled for two minutes, is left to `make bindings`.
test: CASES := -m 'not exhaustive'
test-all: CASES := --hypothesis-profile exhaustive
test test-all: .venv/.ready
	@.venv/bin/python -m tests.gpu.bindings tensorrt-10 tensorrt-11 cuda-12 cuda-13 || true
	@$(if $(EE_DATA),EE_DATA="$(EE_DATA)",env -u EE_DATA) .venv/bin/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(CASES)

lint: .venv/.ready
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/python -m tests.language
	@.venv/bin/mypy

# Nothing here runs them: that takes a GPU. The two majors of TensorRT cannot be in one environment, nor in ours.
bindings: .venv/.ready
	@.venv/bin/python -m tests.gpu.bindings

matrix: .venv/.ready
	@$(if $(EE_DATA),EE_DATA="$(EE_DATA)",env -u EE_DATA) .venv/bin/python -m tests.matrix

docs: .venv/.docs
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

.venv/.docs: .venv/.ready
	@$(PIP_INSTALL) --editable '.[docs]'
	@touch $@

# The real pages count twice: there are half as many of them as drawn ones. glibc gives large arrays back to the system
# after every operation unless it is told not to, which takes a quarter of the time.
sample: export MALLOC_MMAP_THRESHOLD_ := 4000000000
sample: export MALLOC_TRIM_THRESHOLD_ := 8000000000
sample: .venv/.ready
	@test -n "$(EE_DATA)" || { echo "make: set EE_DATA to a folder of real pages with train, val and test" >&2; exit 1; }
	@.venv/bin/python -m draw build/drawn --pages 200 --seed 1 --hard-share 0.4
	@.venv/bin/python -m draw build/golden --pages 1 --seed 2
	@.venv/bin/python -m draw.sample samples/pages
	@.venv/bin/ee-export train $(EE_DATA)/train $(EE_DATA)/train build/drawn --val $(EE_DATA)/val \
	    --recipe recipes/training/documents.toml --out build/whole.checkpoint --force
	@.venv/bin/ee-export train $(EE_DATA)/train $(EE_DATA)/train build/drawn --val $(EE_DATA)/val \
	    --recipe recipes/training/documents.toml --init build/whole.checkpoint --add text.30,text.40,text.50 \
	    --epochs 10 --learning-rate 2e-3 --out samples/documents.checkpoint --force
	@.venv/bin/ee-export build samples/documents.checkpoint $(EE_DATA)/val --golden build/golden \
	    --exits vision,text.40,text.50,text,encoder.1,encoder.4 --out samples/documents.ee --force

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info

.venv/.ready: pyproject.toml Makefile | .venv/bin/pip
	@echo "set-up 2/3: PyTorch without CUDA (190 MB to download, once)"
	@$(PIP_INSTALL) "$(TORCH)" 2>/dev/null || $(PIP_INSTALL) --extra-index-url $(CPU_WHEELS) "$(TORCH)" || \
	    { echo "make: PyTorch's CPU build could not be installed (pip says why, above); $(CPU_WHEELS)/torch lists the Pythons and machines it is made for" >&2; exit 1; }
	@echo "set-up 3/3: the other packages (220 MB to download, once)"
	@$(PIP_INSTALL) --editable '.[export,cpu,data,report,openvino,dev]'
	@touch $@

# Debian keeps half of venv in a package of its own: root gets it installed, anyone else is told its name.
.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "make: $(PYTHON) is missing or older than 3.11; install Python 3.11 or name one, as in: make PYTHON=python3.11 test" >&2; exit 1; }
	@if ! $(HAS_VENV) && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "set-up 0/3: Debian's python3-venv"; \
	    export DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes; \
	    { apt-get -qq update && apt-get -qq -y install python3-venv; } >/dev/null; \
	fi; true
	@$(HAS_VENV) || \
	    { echo "make: $(PYTHON) cannot make a virtual environment; first: sudo apt-get install python3-venv" >&2; exit 1; }
	@echo "set-up 1/3: virtual environment in .venv"
	@$(PYTHON) -m venv --clear .venv
