# `make demo` and `make test` do all the set-up and build out of tree; `make demo-minilm` also downloads
# a model.
JOBS ?= $(shell nproc)
CUDA_FOR_DEMO = $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo AUTO || echo OFF)

.PHONY: demo demo-minilm test build format api-docs clean

demo:
	@sh tools/setup.sh demo
	@cmake --preset release -G Ninja -DESPALIER_CUDA=$(CUDA_FOR_DEMO) -DESPALIER_TESTS=OFF --log-level=WARNING
	@cmake --build build --parallel $(JOBS) --target espalier_program
	@sh tools/demo.sh build/espalier

demo-minilm:
	@sh tools/setup.sh demo
	@cmake --preset release -G Ninja -DESPALIER_CUDA=$(CUDA_FOR_DEMO) -DESPALIER_TESTS=OFF --log-level=WARNING
	@cmake --build build --parallel $(JOBS) --target espalier_program
	@sh tools/demo_minilm.sh build/espalier

test:
	@sh tools/setup.sh test
	@cmake --preset release -G Ninja -DESPALIER_CUDA=AUTO -DESPALIER_TESTS=ON --log-level=WARNING
	@cmake --build build --parallel $(JOBS)
	@cmake --preset asan -G Ninja --log-level=WARNING
	@cmake --build build-asan --parallel $(JOBS)
	@sh tests/run.sh . build build-asan

build:
	@cmake --preset release -G Ninja --log-level=WARNING
	@cmake --build build --parallel $(JOBS)

format:
	clang-format-14 -i $$(find include src cli tests examples -name '*.[ch]')

api-docs:
	perl tools/api_docs.pl include/espalier >docs/api.md

clean:
	rm -rf build build-dev build-asan build-cuda
