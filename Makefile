# One line of ## help per target: `make help`.
SHELL := /bin/bash
.DEFAULT_GOAL := help
BUILD ?= build/release
JOBS ?= $(shell nproc)
export CGO_ENABLED := 1
# go-nvml binds every function of NVML, deprecated ones too.
export CGO_CFLAGS ?= -g -O2 -Wno-deprecated-declarations

# Machine code for these compute capabilities, and PTX for all other cards; a release sets CUDA_ARCH="80 86 89 90 100 120" CUDA_PTX=120.
CUDA_ARCH ?= 80
CUDA_PTX ?= 80

.PHONY: mpi cuda cuda-test cuda-counters ptxas help deps build core test parity op-check asan fmt lint clean photos demo train train-nano ablations quality quality-peer fuzz bench bench-peers

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

build: deps ## the C core (libfluxir_cpu.a) and the programs in bin/
	@cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release >/dev/null
	@cmake --build $(BUILD) -j $(JOBS)
	@mkdir -p bin && go build -o bin/ ./cmd/...

core: deps ## only the C core
	@cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release >/dev/null
	@cmake --build $(BUILD) -j $(JOBS)

# oneDNN's headers and library, ninja: the only things that must be there besides Go, gcc and cmake.
deps:
	@test -e /usr/include/dnnl.hpp && command -v ninja >/dev/null || \
	  { echo "installing libdnnl-dev and ninja-build"; sh tools/install_deps.sh libdnnl-dev ninja-build; }

# Packages run side by side: their OpenMP threads must sleep, not spin, while they wait.
test: build ## every test: Go packages and the C core's own
	@go vet ./...
	@OMP_WAIT_POLICY=passive go test -timeout 20m ./...

fmt: ## gofmt and clang-format over everything
	@gofmt -w $$(git ls-files '*.go')
	@clang-format -i $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'cuda/*.cu' 'cuda/*.cuh' 'cuda/*.cpp' 'cuda/*.h')

lint: core ## formats are as fmt leaves them; go vet, staticcheck
	@test -z "$$(gofmt -l $$(git ls-files '*.go') | tee /dev/stderr)"
	@command -v clang-format >/dev/null || sh tools/install_deps.sh clang-format
	@clang-format --dry-run -Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'cuda/*.cu' 'cuda/*.cuh' 'cuda/*.cpp' 'cuda/*.h')
	@go vet ./...
	@go tool staticcheck ./...

parity: core ## the golden references: per fixture the tensors nearest to their bound, error, allowed, ratio (FLUXIR_GOLDEN=dir1:dir2 adds folders)
	@OMP_WAIT_POLICY=passive go test -count=1 -v -run Golden ./bindings ./pkg/... | grep -E 'checked against|^ {8}|^(ok|FAIL)|--- FAIL'

op-check: core ## every op of fluxir.h has its conformance cases and all its files
	@go test -count=1 -run 'TestCoverage|TestRows' ./bindings/optest

# The archive named first wins over the one in bindings/device.go.
asan: deps ## bindings and conformance tests under the address and undefined-behaviour sanitizers
	@cmake -S . -B build/asan -G Ninja -DFLUXIR_ASAN=ON >/dev/null
	@cmake --build build/asan -j $(JOBS)
	@CGO_LDFLAGS="$(CURDIR)/build/asan/libfluxir_cpu.a -fsanitize=undefined" LSAN_OPTIONS="suppressions=$(CURDIR)/tools/lsan.supp:print_suppressions=0" \
	  OMP_WAIT_POLICY=passive go test -timeout 60m -skip TestGradient -asan ./bindings/...

# One nvcc at a time: each takes a core and up to 1 GB.
cuda: deps ## build/libfluxir_cuda.so, the CUDA plugin; finds nvcc or installs NVIDIA's wheels (CUDA_HOME, CUDA_ARCH, CUDA_PTX)
	@home=$$(sh tools/cuda_toolchain.sh) && cmake -S cuda -B build/cuda -G Ninja -DCUDA_HOME="$$home" -DFLUXIR_CUDA_PTX=$(CUDA_PTX) \
	  -DFLUXIR_CUDA_ARCH="$$(echo $(CUDA_ARCH) | tr ' ' ';')" >/dev/null
	@cmake --build build/cuda -j 1

cuda-test: core cuda ## the op suite on a CUDA card, or on the software device in SOFTCUDA=DIR (CUDA_TEST: arguments of go test)
	@CUDA_HOME=$$(sh tools/cuda_toolchain.sh) sh tools/cuda_run.sh go test -count=1 -timeout 60m \
	  $(or $(CUDA_TEST),-run TestConformance ./bindings/optest)

cuda-counters: ## what the software device counts on representative shapes, as issued / necessary, held against bars
	@$(MAKE) cuda-test CUDA_TEST="-v -run TestCounters ./bindings/optest"

# On a machine without a card: make gpu-day GPU_DAY=--tiny
.PHONY: gpu-day
gpu-day: ## on a card: conformance, compute-sanitizer, benchmarks with peers, roofline, whole models, ptxas; one report folder (GPU_DAY: --tiny, --out DIR, steps)
	@bash tools/gpu_day.sh $(GPU_DAY)

ptxas: ## registers, spills, shared memory, occupancy of every kernel on six architectures (PTXAS_FLAGS=--update writes cuda/ptxas.golden to compare with)
	@python3 tools/cuda_ptxas.py --home "$$(sh tools/cuda_toolchain.sh)" $(PTXAS_FLAGS)

mpi: ## build/libfluxir_mpi.so, the engine for runs of several processes (mpirun -n N bin/train ...); installs Open MPI where there is no MPI
	@command -v mpicxx >/dev/null || { echo "installing openmpi-bin and libopenmpi-dev"; sh tools/install_deps.sh openmpi-bin libopenmpi-dev; }
	@$(MAKE) --no-print-directory core && test -e build/libfluxir_mpi.so

clean: ## remove build outputs (not data, not runs)
	@rm -rf build bin bindings/zz_stamp.go

photos: ## fetch the training and evaluation photographs into data/photos (1 GB of Debian packages; see cmd/photos -h)
	@go run ./cmd/photos $(PHOTOS_FLAGS)

demo: build ## restore the shipped photograph: out/castle.png and the sheet out/castle_sheet.png
	@mkdir -p out
	@bin/restore testdata/photo/castle.jpg -o out/castle.png --sheet out/castle_sheet.png
	@echo "before and after: out/castle_sheet.png"

# A FLUX.1 folder: make train MODEL=/path/to/FLUX.1-dev
TRAIN_PHOTOS ?= $(if $(wildcard data/photos/train.fxp),data/photos,testdata/photo/castle_clean.jpg)
train: build ## train the adapter on the embedded base, or on the FLUX.1 folder MODEL; the same command resumes (TRAIN_FLAGS: train --help)
	@test -n "$(wildcard data/photos/train.fxp)" || echo "train: data/photos is empty (make photos fills it): taking $(TRAIN_PHOTOS), enough to see the loss fall"
	@bin/train --config configs/$(if $(MODEL),flux,nano)_adapter.toml $(if $(MODEL),--model "$(MODEL)") --photos "$(TRAIN_PHOTOS)" $(TRAIN_FLAGS)

# Pictures of 64x64 pixels are enough for crops of 32; each of the sets has its own folder, the same command goes on.
FLUXGEN_RUN ?= runs/fluxgen
FLUXGEN_FLAGS ?= --count 64 --size 64 --copies 8
train-fluxgen: build photos ## an adapter trained on a FluxGen set alone beside one trained on photographs, same steps: both tables of held-out photographs
	@bin/fluxgen run $(FLUXGEN_FLAGS) --preset light --out $(FLUXGEN_RUN)/set
	@bin/train --config configs/nano_fluxgen.toml --photos $(FLUXGEN_RUN)/set --run $(FLUXGEN_RUN)/generated $(TRAIN_FLAGS)
	@bin/train --config configs/nano_fluxgen.toml --photos data/photos --run $(FLUXGEN_RUN)/photographs $(TRAIN_FLAGS)
	@for arm in generated photographs; do echo "trained on $$arm:"; bin/evaluate --crop 256 --model pkg/model/nano/bundle \
	  --adapter $(FLUXGEN_RUN)/$$arm/export/adapter.safetensors data/photos/eval data/photos/val 2>/dev/null || exit 1; done

train-nano: build photos ## train the embedded model, all stages; interrupt with Ctrl-C, the same command resumes
	@bin/train nano --run runs/nano

ablations: build photos ## the method's parts left out or changed, three seeds each, on the embedded base: docs/ablations.md; the same command resumes
	@OMP_WAIT_POLICY=passive bin/train ablate --config configs/nano_ablations.toml --jobs 2 --md docs/ablations.md $(ABLATION_FLAGS)

# 256x256 centre crops of photographs that were never trained on.
quality: build photos ## table of PSNR, SSIM, GMSD, HaarPSI before and after restoring held-out photographs
	@bin/evaluate --crop 256 data/photos/eval data/photos/val

# Real-ESRGAN takes about 15 s a picture and core pair: an hour for both folders. PEER_PHOTOS names fewer.
PEER_PHOTOS ?= data/photos/eval data/photos/val
quality-peer: build photos ## the same table for Real-ESRGAN x4plus (Python, ncnn), its output shrunk to the input's size
	@test -x build/peers/bin/python || python3 -m venv build/peers
	@build/peers/bin/pip install -q --no-deps -r tools/peers/requirements.txt
	@bin/evaluate --crop 256 --with "build/peers/bin/python tools/peers/realesrgan.py" $(PEER_PHOTOS)

# Nothing else should run on the machine: kbench prints a clock below 1 and a large MAD where something did.
bench: build ## every op and block at the shapes of FLUX.1, its autoencoder and the embedded model: docs/bench.md, docs/bench-roofline.svg
	@bin/kbench --json build/bench.jsonl $(BENCH_FLAGS)
	@bin/kbench --from build/bench.jsonl --md docs/bench.md --plot docs/bench-roofline.svg

PEERS_AVX2 ?= ^attention forward, L 1536|^linear 1536×3072→3072|^double block forward, 256
bench-peers: build ## the same shapes in turn with PyTorch and diffusers (Python, a few GB), then rows PEERS_AVX2 with both held to AVX2: docs/bench.md
	@test -x build/bench-peers/bin/python || python3 -m venv build/bench-peers
	@build/bench-peers/bin/python -m pip install -q -r tools/bench/requirements.txt
	@build/bench-peers/bin/python tools/bench/peers.py --md docs/bench.md $(PEERS_FLAGS)
	@test -z "$(PEERS_AVX2)" || build/bench-peers/bin/python tools/bench/peers.py --isa avx2 --md docs/bench.md $(PEERS_FLAGS) --rows "$(PEERS_AVX2)"

fuzz: core ## fuzz every parser of bytes for FUZZTIME (30s) each
	@grep -rl --include='*_test.go' '^func Fuzz' . | while read -r file; do \
	  for name in $$(sed -n 's/^func \(Fuzz[A-Za-z]*\).*/\1/p' $$file); do \
	    go test -run '^$$' -fuzz "^$$name$$" -fuzztime $${FUZZTIME:-30s} ./$$(dirname $$file) || exit 1; done; done

# PyTorch and diffusers in a virtual environment of their own; a few GB where pip finds no CPU build of torch.
.PHONY: golden
golden: ## write the reference fixtures of testdata/golden anew (Python, PyTorch)
	@test -x build/golden/bin/python || python3 -m venv build/golden
	@build/golden/bin/pip install -q -r tools/golden/requirements.txt
	@build/golden/bin/python tools/golden/make.py --out testdata/golden
