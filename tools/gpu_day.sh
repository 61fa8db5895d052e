#!/bin/bash
# Everything worth knowing on the day a card is there, in one report folder: `make gpu-day`. Each step has a log; a step that fails is recorded
# and the rest goes on; the exit code is 1 if any failed. DIR/index.md is where to begin.
#   tools/gpu_day.sh [--tiny] [--out DIR] [STEP...]
# --tiny: shapes that the software device can do, to try all of this without a card. STEP: only these.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

tiny= out= only=
while [ $# -gt 0 ]; do
  case $1 in
    --tiny) tiny=1 ;;
    --out) out=${2:?--out: want a folder}; shift ;;
    -*) echo "gpu-day: $1: want --tiny, --out DIR or names of steps" >&2; exit 2 ;;
    *) only="$only $1 " ;;
  esac
  shift
done
kind=$(sh tools/cuda_run.sh --check) || { echo "gpu-day: $kind" >&2; exit 2; }
[ "$kind" = card ] || [ -n "$tiny" ] || { echo "gpu-day: there is no card; --tiny tries it on the software device" >&2; exit 2; }
out=${out:-runs/gpu-day/$(date -u +%Y%m%d-%H%M%S)}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
touch "$out/steps.tsv" # a folder that is there is added to
CUDA_HOME=$(sh tools/cuda_toolchain.sh) || exit 2
export CUDA_HOME OMP_WAIT_POLICY=passive
[ "$kind" = card ] || export SOFTCUDA_RACECHECK=${SOFTCUDA_RACECHECK:-0} # make cuda-test is the place for it
cuda() { sh tools/cuda_run.sh "$@"; }

# ---- steps: each writes to stdout; `skip REASON` ends one that cannot be done here ----

skip() { echo "skipped: $*"; exit 77; }

machine() {
  git log -1 --format='commit %h of %cs%n' && git status --short | head
  uname -srm && grep -m1 'model name' /proc/cpuinfo
  "$CUDA_HOME/bin/nvcc" --version | tail -2
  if command -v nvidia-smi >/dev/null; then nvidia-smi -q; else echo "no nvidia-smi"; fi
}

build() {
  local arch=80
  if [ "$kind" = card ] && command -v nvidia-smi >/dev/null; then
    arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | tr -d . | sort -un | tr '\n' ' ')
  fi
  make build cuda CUDA_ARCH="${GPU_DAY_ARCH:-$arch}" JOBS="${JOBS:-$(nproc)}"
}

conformance() {
  cuda go test -count=1 -timeout 4h -run "TestConformance${tiny:+/(gate_forward|adaln_backward|fill)/}" ./bindings/optest
}

models() { # streamed weights, graphs, a whole picture and training steps against the CPU
  cuda go test -count=1 -timeout 4h -run "${tiny:+TestStreamedParams|TestOutOfMemory|TestDevicePicture}" ./bindings ./pkg/model ./pkg/restore \
    $([ -n "$tiny" ] || echo ./pkg/train)
}

sanitizer() { # compute-sanitizer's four tools over part of the suite: it is tens of times slower
  [ "$kind" = card ] || skip "compute-sanitizer needs a card; the software device checks the same things in the steps above"
  local tool run root=$PWD bad=0
  run=$(command -v compute-sanitizer || ls "$CUDA_HOME"/bin/compute-sanitizer /usr/local/cuda/bin/compute-sanitizer 2>/dev/null | head -1)
  [ -n "$run" ] || skip "compute-sanitizer is not in PATH nor in $CUDA_HOME/bin"
  go test -c -o build/optest.test ./bindings/optest || return 1
  export FLUXIR_DEVICE=cuda FLUXIR_CUDA="$root/build/libfluxir_cuda.so"
  for tool in memcheck racecheck initcheck synccheck; do
    echo "== $tool"
    (cd bindings/optest && "$run" --tool $tool --error-exitcode 9 "$root/build/optest.test" -test.run "${GPU_DAY_SANITIZE:-TestConformance/.*/.*17}") || bad=1
  done
  return $bad
}

bench() { # PRESET
  local part=()
  if [ -n "$tiny" ]; then
    part=(--seconds 0.01 --cold=false)
    case $1 in
      flux) part+=(--op se_excite_forward --dtype f32) ;;
      nano) part+=(--op se_excite_forward,axpby_forward --dtype f32) ;;
      vae) part+=(--op gaussian_forward --dtype f32) ;;
    esac
  fi
  cuda bin/kbench --device cuda --preset "$1" --json "$out/kbench.jsonl" "${part[@]}"
}
kbench_flux() { bench flux; }
kbench_nano() { bench nano; }
kbench_vae() { bench vae; }

roofline() {
  printf '# Ops and blocks\n\n<!-- begin kbench -->\n<!-- end kbench -->\n' >"$out/bench.md"
  bin/kbench --from "$out/kbench.jsonl" --md "$out/bench.md" --plot "$out/roofline.svg" && echo "bench.md, roofline.svg"
}

peers() {
  local python=${GPU_DAY_PYTHON:-python3}
  "$python" -c 'import torch' 2>/dev/null || skip "no PyTorch for $python (GPU_DAY_PYTHON names another)"
  "$python" tools/bench/peers_cuda.py --from "$out/kbench.jsonl" --md "$out/peers.md" ${tiny:+--device cpu}
}

restoring() { # s/image with the embedded model, after the first of three, which loads
  local side dtype sides="512 1024" dtypes="f32 bf16" dir="$out/pictures"
  [ -z "$tiny" ] || sides=16 dtypes=f32
  mkdir -p "$dir"
  printf '# Restoring\n\n| side | dtype | s/image | device MB |\n|---|---|---|---|\n' >"$out/restore.md"
  for side in $sides; do
    python3 tools/bench/picture.py "$side" "$dir/$side.png" || return 1
    for i in a b c; do [ -n "$tiny" ] && [ $i = c ] || cp "$dir/$side.png" "$dir/$side$i.png"; done
    for dtype in $dtypes; do
      cuda bin/restore "$dir/$side"[abc].png -o "$dir/restored-$dtype" --device cuda --dtype "$dtype" --json | tee "$out/restore-$side-$dtype.jsonl" || return 1
      python3 - "$out/restore-$side-$dtype.jsonl" "$side" "$dtype" >>"$out/restore.md" <<'P' || return 1
import json, statistics, sys
lines = [json.loads(line) for line in open(sys.argv[1]) if line.startswith("{")]
rows = [r for r in lines if r["event"] == "result"]
print(f"| {sys.argv[2]} | {sys.argv[3]} | {statistics.median(r['seconds'] for r in rows[1:]):.3g} | {max(r['device_peak_bytes'] for r in rows) >> 20} |")
P
    done
  done
  cat "$out/restore.md"
}

training() { # steps of the adapter on the embedded base; ms/step is in the log
  local dtype size=(--steps 60 --batch 16 --size 64) dtypes="f32 bf16"
  [ -z "$tiny" ] || size=(--steps 2 --batch 1 --size 16) dtypes=f32
  for dtype in $dtypes; do
    rm -rf "$out/train-$dtype"
    cuda bin/train --config configs/nano_adapter.toml --photos testdata/photo/castle_clean.jpg --device cuda --dtype $dtype --run "$out/train-$dtype" \
      "${size[@]}" --save-every 100000 --sample-every 100000 || return 1
  done
}

spills() {
  [ -z "$tiny" ] || skip "make ptxas takes minutes and needs no card"
  make ptxas
}

# ---- the run ----

steps="machine build conformance models sanitizer kbench_flux kbench_nano kbench_vae roofline peers restoring training spills"
for step in $only; do
  case " $steps " in *" $step "*) ;; *) echo "gpu-day: no step $step; there are: $steps" >&2; exit 2 ;; esac
done

watch=
if [ "$kind" = card ] && command -v nvidia-smi >/dev/null; then # what the card did meanwhile
  nvidia-smi --query-gpu=timestamp,clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_event_reasons.active,memory.used --format=csv -l 1 >"$out/card.csv" &
  watch=$!
fi
trap '[ -z "$watch" ] || kill $watch 2>/dev/null' EXIT

index() {
  local step result seconds
  {
    printf '# GPU day, %s\n\n' "$(date -u +%F)"
    [ "$kind" = card ] || printf '**On the software device, with tiny shapes: this tries the procedure. No time here says anything about a card.**\n\n'
    printf '| step | result | seconds | log | last line |\n|---|---|---|---|---|\n'
    for step in $steps; do
      IFS=$'\t' read -r _ result seconds < <(grep "^$step	" "$out/steps.tsv") || continue
      printf '| %s | %s | %s | [log](%s.log) | %s |\n' "$step" "$result" "$seconds" "$step" \
        "$(grep -vE '^ *$|^software device: |^make\[' "$out/$step.log" | tail -1 | cut -c1-160 | sed 's/|/\\|/g')"
    done
    printf '\nAlso here:'
    (cd "$out" && ls | grep -vE '\.log$|^steps.tsv$|^index.md' | sed 's/.*/ [&](&)/' | paste -sd,) || echo " nothing"
  } >"$out/index.md.new"
  mv "$out/index.md.new" "$out/index.md"
}

bad=0
for step in $steps; do
  [ -z "$only" ] || case $only in *" $step "*) ;; *) continue ;; esac
  printf 'gpu-day: %-12s ' "$step"
  begun=$SECONDS
  ( "$step" ) >"$out/$step.log" 2>&1
  code=$?
  case $code in
    0) result=ok ;;
    77) result=skipped ;;
    *) result="failed ($code)" bad=1 ;;
  esac
  { grep -v "^$step	" "$out/steps.tsv"; printf '%s\t%s\t%s\n' "$step" "$result" "$((SECONDS - begun))"; } >"$out/steps.new"
  mv "$out/steps.new" "$out/steps.tsv"
  echo "$result, $((SECONDS - begun)) s"
  index
done
echo "gpu-day: $out/index.md"
exit $bad
