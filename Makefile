# Each target makes what it needs, its own virtual environment included.

PYTHON ?= python3
DEMO := .venv-demo
TEST := .venv-test
CMAKE_BUILD := build/cmake
EMULATED := 'emulated_|planted_bugs|have_kernels|for_tiles'
# No graphs; and in float32, slowest there, the C++ tests have layers of many bands.
IN_EMULATOR := '(cuda or gpu) and not replayed and not (float32 and 64x64x)'

.PHONY: demo test check cuda-check ptx-check native clean

# The main job: installs PrivImage and turns real handwritten digits into synthetic ones.
demo: $(DEMO)/installed
	$(DEMO)/bin/privimage train --out runs/digits

# The tests, against the installed package: a process a core, one thread each. They are handed out one
# by one, so every process meets its own in the order of the files, on which some rely.
test: $(TEST)/installed
	OMP_NUM_THREADS=1 $(TEST)/bin/pytest --numprocesses auto --dist loadgroup

# What takes longer or needs more tools: style, types, C++ tests under sanitizers, CUDA compilation.
check: cuda-check
	$(TEST)/bin/ruff check .
	$(TEST)/bin/ruff format --check .
	$(TEST)/bin/mypy
	$(TEST)/bin/mkdocs build --strict --quiet --site-dir build/site
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' | xargs $(TEST)/bin/clang-format --dry-run -Werror
	$(TEST)/bin/ctest --test-dir $(CMAKE_BUILD) --output-on-failure --exclude-regex $(EMULATED)

# The CUDA kernels without a GPU: compiled for every target, what they use of it compared with the
# kept table, linked with their operators and loaded, run in the emulator against float64, by
# themselves and as the operators and the engine call them, and every planted bug killed.
cuda-check: native
	$(TEST)/bin/ctest --test-dir $(CMAKE_BUILD) --output-on-failure --tests-regex $(EMULATED)
	$(TEST)/bin/python csrc/tests/kernel_resources.py $(CMAKE_BUILD)
	PYTHONPATH=tests PRIVIMAGE_EMULATED_GPU=$(CURDIR)/$(CMAKE_BUILD)/libemulated_gpu.so OMP_NUM_THREADS=1 \
	  $(TEST)/bin/pytest -p emulated_gpu --numprocesses auto -k $(IN_EMULATOR) \
	  tests/ops/test_devices.py tests/dp/test_recompute.py tests/dp/test_private_engine.py \
	  tests/diffusion/test_pretrain.py tests/synthesis/test_finetune.py

# What nvcc makes of the CUDA kernels, inline assembly included, on the CPU: their PTX is translated to
# C++, and the operators' tests for a GPU run on it in the emulator. Some minutes, most of them g++'s.
ptx-check: native
	$(TEST)/bin/cmake --build $(CMAKE_BUILD) --parallel 2 --target ptx_gpu
	PYTHONPATH=tests PRIVIMAGE_EMULATED_GPU=$(CURDIR)/$(CMAKE_BUILD)/libptx_gpu.so OMP_NUM_THREADS=1 \
	  $(TEST)/bin/pytest -p emulated_gpu --numprocesses auto -k $(IN_EMULATOR) \
	  tests/ops/test_devices.py

# C++ tests, and CUDA kernels where there is nvcc.
native: $(TEST)/installed
	$(TEST)/bin/cmake -S . -B $(CMAKE_BUILD) -DPRIVIMAGE_SANITIZE=ON -DPython3_EXECUTABLE=$(CURDIR)/$(TEST)/bin/python
	$(TEST)/bin/cmake --build $(CMAKE_BUILD) --parallel 2

# The native part is built against the torch that it will run with: no isolated build.
%/installed: pyproject.toml constraints.txt setup.py CMakeLists.txt $(shell find privimage csrc -type f -not -name '*.pyc' -not -name '*.so')
	$(PYTHON) -m venv $*
	$*/bin/pip install --quiet --constraint constraints.txt torch numpy setuptools wheel ninja pybind11
	$*/bin/pip install --quiet --constraint constraints.txt --no-build-isolation '.$(EXTRAS)'
	touch $@

$(TEST)/installed: EXTRAS := [test,docs]

clean:
	rm -rf $(DEMO) $(TEST) build *.egg-info
