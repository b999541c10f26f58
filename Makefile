# Set-up, checks and the demo. Needs Python 3.10 or newer (with its headers) and a C++17 compiler; CMake and Ninja come
# from pip. Everything goes into the active virtual environment, or into .venv, which is made where there is none.
#
#   make demo VENV=/path/to/env     another environment, for one that conda made
#   make demo PYTHON=python3.12     another interpreter for a new .venv

PYTHON ?= python3
VENV ?= $(or $(VIRTUAL_ENV),$(CURDIR)/.venv)
PY := $(VENV)/bin/python
export PATH := $(VENV)/bin:$(PATH)

# What pyproject.toml asks for under [build-system]: installed here, so that a rebuild after an edit takes seconds.
BUILD_TOOLS := "setuptools>=77" "pybind11>=2.13" "cmake>=3.18" "ninja"
# The extra s3test.
S3_TEST := "aiobotocore[boto3]" boto3 "moto[server]>=5"
# A stamp says that this checkout is installed in that environment with that extra.
STAMP := $(VENV)/.dvt-fast$(subst /,-,$(CURDIR))
CONSTRAINTS := $(VENV)/.dvt-fast-constraints.txt
NATIVE := build/native.stamp
CXX_SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py

# The CUDA library is built for the GPUs that are here; where there is none the demo does without it, and the tests, which
# run its kernels in an emulator, compile it for one, whose code has all kernels. `make resources` compiles for all.
GPU := $(shell nvidia-smi -L 2>/dev/null)
demo $(STAMP)-demo $(NATIVE): export DVT_FAST_CUDA := $(or $(DVT_FAST_CUDA),$(if $(GPU),auto,off))
$(STAMP)-dev build: export DVT_FAST_CUDA_ARCHITECTURES := $(or $(DVT_FAST_CUDA_ARCHITECTURES),$(if $(GPU),,90a))

WERROR := -DDVT_FAST_WERROR=ON $(DVT_FAST_CMAKE_ARGS)

CXX_FILES = find csrc examples tests -name '*.cpp' -o -name '*.hpp' -o -name '*.c' -o -name '*.h' \
    -o -name '*.cu' -o -name '*.cuh'

ASTRONAUT = $$($(PY) -c 'import skimage; print(skimage.__path__[0])')/data/astronaut.png

.DEFAULT_GOAL := help
.PHONY: help demo test gpu resources fuzz lint format build clean

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*##/\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: $(STAMP)-demo $(NATIVE)  ## install, clean the features of one photo, both ways; print where the pictures are
	@dvt-fast decompose "$(ASTRONAUT)" --no-norm --out demo
	@dvt-fast denoise "$(ASTRONAUT)" --stage1 --out demo
	@echo "The pictures are $(CURDIR)/demo/astronaut.png and astronaut-denoised.png"

# Most tests keep one core busy: they run in as many processes as there are cores, with one thread of torch each.
test: $(STAMP)-dev lint build  ## install, lint, build with warnings as errors, run every test
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile -m "not alone"
	$(PY) -m pytest -m alone

gpu:  ## on a machine with a GPU: build, test, sanitize and measure with $(PYTHON), within 9 minutes; nothing is installed
	@$(PYTHON) tools/make_gpu.py $(GPU_ARGS)

resources: $(STAMP)-dev  ## compile the kernels for every GPU; print their registers and memory, fail where they spill
	cmake -S . -B build/cuda -G Ninja -DDVT_FAST_PYTHON=OFF -DDVT_FAST_CUDA=on
	cmake --build build/cuda --target dvt_fast_cuda
	$(PY) tools/cuda_resources.py build/cuda/libdvt_fast_cuda.so
	DVT_FAST_RESOURCES=build/cuda/libdvt_fast_cuda.so $(PY) -m pytest -q tests/test_cuda_resources.py

FUZZ_SECONDS ?= 600
fuzz: $(STAMP)-dev  ## search engine files, pixels and sessions for what breaks them, with Clang, ten minutes each
	cmake -S tests/fuzz -B build/fuzz -G Ninja -DCMAKE_CXX_COMPILER=clang++ && cmake --build build/fuzz
	$(PY) tests/fuzz/make_corpus.py build/fuzz/corpus
	cd build/fuzz && for target in engine_file pixels session; do \
	    mkdir -p found_$$target; \
	    ./fuzz_$$target -max_total_time=$(FUZZ_SECONDS) -timeout=20 -malloc_limit_mb=512 -max_len=12000 \
	        $$(test $$target = pixels || echo -dict=corpus/words) found_$$target corpus/$$target || exit 1; done

lint: $(STAMP)-dev  ## check style, formatting and types
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(CXX_FILES) | xargs clang-format --dry-run --Werror
	$(PY) -m mypy

format: $(STAMP)-dev  ## write the formatting that lint asks for
	$(PY) -m ruff check --fix
	$(PY) -m ruff format
	$(CXX_FILES) | xargs clang-format -i

build: $(STAMP)-dev  ## compile the native module in place, warnings as errors
	$(PY) setup.py --quiet build_ext --inplace
	@touch $(NATIVE)

$(STAMP)-dev build: export DVT_FAST_CMAKE_ARGS := $(WERROR)

clean:  ## remove what was built and what the demo wrote; the environment stays
	rm -rf dvt_fast/lib dvt_fast/include build dist demo out *.egg-info dvt_fast/_native*.so .pytest_cache .mypy_cache .ruff_cache
	rm -f $(STAMP)-demo $(STAMP)-dev

$(PY):
	$(PYTHON) -m venv "$(VENV)"

# The constraint keeps a torch that is already there: pip would otherwise replace it to suit the newest torchvision.
define install
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip --upgrade
	$(PY) -m pip install --quiet --disable-pip-version-check $(BUILD_TOOLS)
	@$(PY) tools/torch_constraints.py > $(CONSTRAINTS)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation -c $(CONSTRAINTS) -e '.[$(1)]'
	@mkdir -p $(dir $(NATIVE)) && touch $(NATIVE)
endef

$(STAMP)-demo: pyproject.toml | $(PY)
	$(call install,demo)
	@touch $@

$(STAMP)-dev: pyproject.toml | $(PY)
	$(call install,dev)
	$(PY) -m pip install --quiet --disable-pip-version-check $(S3_TEST)
	@touch $(STAMP)-demo $@

# For the demo, after an edit; the install has built it already.
$(NATIVE): $(CXX_SOURCES) | $(STAMP)-demo
	$(PY) setup.py --quiet build_ext --inplace
	@mkdir -p $(dir $@) && touch $@
