#!/usr/bin/env bash
# Everything that needs a GPU, in one call of about nine minutes, on a machine without a network:
#
#   OUT=results bench/on_gpu.sh [WHEELS]      WHEELS: folder filled by bench/collect_wheels.sh (default: wheels)
#   bench/on_gpu.sh --dry-run                 the same steps, tiny, on a CPU; what needs a GPU is left out
#
# Builds for this machine's GPU; then operator tests, end-to-end and operator benchmarks, compute-sanitizer, ncu. Every
# step has a time limit and none stops the others. $OUT (default bench/results/gpu) gets end_to_end_cuda.json, ops.json,
# hottest.json, ncu.csv, each step's output in log.txt, and summary.txt, which is printed at the end.
# The exit status is 0 when every step that ran was well.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

device=cuda
if [ "${1:-}" = --dry-run ] || [ "${DEVICE:-}" = cpu ]; then
  device=cpu
  [ "${1:-}" = --dry-run ] && shift
fi
wheels=${1:-wheels}
out=${OUT:-bench/results/gpu}
budget=${BUDGET:-560} # seconds for all steps together
mkdir -p "$out"
out=$(cd "$out" && pwd)
log=$out/log.txt
: >"$log"
summary=()
failed=0

# step NAME SECONDS COMMAND...: run it for at most SECONDS, keep its output, remember how it ended
step() {
  local name=$1 limit=$2 status started=$SECONDS
  shift 2
  local left=$((budget - SECONDS))
  if [ "$left" -lt 5 ]; then
    summary+=("$name: no time left")
    failed=1
    return 1
  fi
  if [ "$limit" -gt "$left" ]; then limit=$left; fi
  printf '\n=== %s: %s\n' "$name" "$*" | tee -a "$log"
  # An interrupt first, so that a benchmark still writes what it has.
  timeout -s INT -k 10 "$limit" "$@" 2>&1 | tee -a "$log" | tail -n 40
  status=${PIPESTATUS[0]}
  case $status in
    0) summary+=("$name: well, $((SECONDS - started)) s") ;;
    124 | 137) summary+=("$name: stopped at its limit of $limit s") ;;
    *) summary+=("$name: exit status $status, $((SECONDS - started)) s") ;;
  esac
  if [ "$status" -ne 0 ]; then failed=1; fi
  return "$status"
}

# step_with TOOL NAME SECONDS COMMAND...: the same, left out where the tool is not installed
step_with() {
  if command -v "$1" >/dev/null; then
    step "${@:2}"
  else
    summary+=("$2: left out, no $1 here")
  fi
}

if compgen -G "$wheels/*.whl" >/dev/null; then
  site=$(mktemp -d)
  step wheels 60 python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
  export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
  export PATH=$site/bin:$PATH
fi

if [ "$device" = cuda ]; then
  capability=$(python3 -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || {
    echo "no GPU that torch can use; bench/on_gpu.sh --dry-run goes through the steps on a CPU" >&2
    exit 1
  }
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee -a "$log"
  export TORCH_CUDA_ARCH_LIST=$capability PXP_CUDA=1
  step build 150 python3 setup.py build_ext --inplace
  tests=cuda
  subset='cuda and (definition or every_element or ties or batches_do_not) and not opcheck'
  operators=(bench)
  end_to_end=(--device cuda --batch 64 --repeats 7 --models resnet50 vit_b_16 resnet18 vgg16)
  hottest=(--batch 64)
else
  tests='test_select and cpu and float32'
  operators=(bench/bench_select.py -k 46224)
  end_to_end=(--repeats 1 --batch 1 --models resnet18 --contenders pxp_fast)
  hottest=(--network resnet18 --batch 1)
fi

native=$([ "$device" = cuda ] && echo CUDA || echo CPU)
step loaded 60 python3 -c "
import pxp_fast.ops
from pxp_fast.ops._library import native
assert native['$native'] == 'loaded', native"
step tests 100 python3 -m pytest tests/ops -q -p no:cacheprovider -k "$tests"
step end-to-end 200 python3 -m bench.bench_end_to_end "${end_to_end[@]}" --out "$out/end_to_end_$device.json"
step operators 110 python3 -m pytest "${operators[@]}" -q -p no:cacheprovider -o 'python_files=bench_*.py' \
  -W ignore --benchmark-columns=min,median --benchmark-json "$out/ops.json"
if [ -s "$out/ops.json" ]; then
  step table 60 python3 -m bench.rounds "$out/ops.json"
fi
step hottest 60 python3 -m bench.hottest "${hottest[@]}" --out "$out/hottest.json"
if [ "$device" = cuda ]; then
  kernels=$(sed -n 's/^kernels: //p' "$log" | tail -n 1 | tr ' ' '|')
  for tool in memcheck racecheck; do
    # Without torch's caching allocator, so that a step past a tensor's end is a step past an allocation.
    step_with compute-sanitizer "$tool" 70 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      compute-sanitizer --tool "$tool" --kernel-name kns=pxp --report-api-errors no --require-cuda-init no \
      --error-exitcode 9 python3 -m pytest tests/ops -q -x -p no:cacheprovider -k "$subset"
  done
  # The clocks stay as they are.
  step_with ncu ncu 60 ncu --clock-control none --kernel-name "regex:^(${kernels:-epsilon.*})\$" --launch-count 9 \
    --section SpeedOfLight --section Occupancy --section LaunchStats --csv --log-file "$out/ncu.csv" \
    python3 -m bench.hottest "${hottest[@]}" --plain
fi

{
  printf '%s\n' "${summary[@]}"
  echo "results: $out, $SECONDS s in all"
} | tee "$out/summary.txt"
exit "$failed"
