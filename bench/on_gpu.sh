#!/usr/bin/env bash
# Everything that needs a GPU, in three parts of less than ten minutes each, on a machine without a network:
#
#   OUT=results bench/on_gpu.sh [check|bench|profile|all] [WHEELS]
#       check    is it right? builds, operator and engine tests, compute-sanitizer
#       bench    is it fast? operators and networks beside their peers
#       profile  why? where the time goes, ncu, and nsys where there is one
#       all      one after the other, which is what it does unasked
#   bench/on_gpu.sh --dry-run [...]           the same steps, tiny, on a CPU; what needs a GPU is left out
#
# WHEELS is a folder filled by bench/collect_wheels.sh (default: wheels). Every part first builds for this machine's GPU
# what is not built yet. Every step has a time limit and none stops the others. $OUT (default bench/results/gpu) gets
# ops.json, ops_compiled.json, end_to_end_cuda.json, end_to_end_compiled_cuda.json, hottest.json, ncu.csv and
# nsys.nsys-rep, each step's output in log.txt, and summary.txt, which is printed at the end. The exit status is 0 when
# every step was well; a tool that is missing is not.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

device=${DEVICE:-cuda}
mode=all
wheels=wheels
for argument in "$@"; do
  case $argument in
    --dry-run) device=cpu ;;
    check | bench | profile | all) mode=$argument ;;
    -*)
      echo "bench/on_gpu.sh: $argument is none of its options; see its first lines" >&2
      exit 2
      ;;
    *) wheels=$argument ;;
  esac
done
out=${OUT:-bench/results/gpu}
budget=${BUDGET:-560} # seconds for all steps of a part together
deadline=$budget
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
  local left=$((deadline - SECONDS))
  if [ "$left" -lt 5 ]; then
    summary+=("$name: no time left")
    failed=1
    return 1
  fi
  if [ "$limit" -gt "$left" ]; then limit=$left; fi
  printf '\n=== %s: %s\n' "$name" "$*" | tee -a "$log"
  # An interrupt first, so that a benchmark still writes what it has; it is heard in the background too.
  env --default-signal=INT timeout -s INT -k 10 "$limit" "$@" 2>&1 | tee -a "$log" | tail -n 40
  status=${PIPESTATUS[0]}
  case $status in
    0) summary+=("$name: well, $((SECONDS - started)) s") ;;
    124 | 137) summary+=("$name: stopped at its limit of $limit s") ;;
    *) summary+=("$name: exit status $status, $((SECONDS - started)) s") ;;
  esac
  if [ "$status" -ne 0 ]; then failed=1; fi
  return "$status"
}

# step_with TOOL NAME SECONDS COMMAND...: the same with a tool that should be there
step_with() {
  if command -v "$1" >/dev/null; then
    step "${@:2}"
  else
    summary+=("$2: failed, no $1 here")
    failed=1
  fi
}

tests() { step "$1" "$2" python3 -m pytest -q -p no:cacheprovider "${@:3}"; }

benchmarks() { # NAME SECONDS JSON ARGUMENTS...
  step "$1" "$2" python3 -m pytest -q -p no:cacheprovider -o 'python_files=bench_*.py' -W ignore \
    --benchmark-columns=min,median --benchmark-json "$out/$3" "${@:4}"
  if [ -s "$out/$3" ]; then step "$1, table" 10 python3 -m bench.rounds "$out/$3"; fi
}

end_to_end() { # NAME SECONDS JSON ARGUMENTS...
  step "$1" "$2" python3 -m bench.bench_end_to_end "${@:4}" --out "$out/$3"
}

# sanitize TOOL SECONDS TESTS...
sanitize() {
  # Without torch's caching allocator, so that a step past a tensor's end is a step past an allocation.
  step_with compute-sanitizer "$1" "$2" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    compute-sanitizer --tool "$1" --kernel-name kns=pxp --report-api-errors no --require-cuda-init no \
    --error-exitcode 9 python3 -m pytest -q -x -p no:cacheprovider "${@:3}"
}

# Once, out of the first part's time.
prepare() {
  if compgen -G "$wheels/*.whl" >/dev/null; then
    site=$(mktemp -d)
    step wheels 40 python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
    export PATH=$site/bin:$PATH
  fi
  native=CPU
  if [ "$device" = cuda ]; then
    native=CUDA
    local cuda=${CUDA_HOME:-/usr/local/cuda} folder
    for folder in "$cuda"/bin "$cuda"/nsight-compute* /opt/nvidia/nsight-compute/* "$cuda"/nsight-systems*/bin \
      /opt/nvidia/nsight-systems/*/bin; do
      if [ -d "$folder" ]; then PATH=$PATH:$folder; fi
    done
    capability=$(python3 -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || {
      echo "no GPU that torch can use; bench/on_gpu.sh --dry-run goes through the steps on a CPU" >&2
      exit 1
    }
    local tool
    for tool in cmake ninja; do
      command -v "$tool" >/dev/null || {
        echo "no $tool here, and nothing is built without; bench/collect_wheels.sh fetches it" >&2
        exit 1
      }
    done
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee -a "$log"
    export TORCH_CUDA_ARCH_LIST=$capability PXP_CUDA=1
    step build 150 python3 setup.py build_ext --inplace
  fi
  step loaded 20 python3 -c "
import pxp_fast.ops
from pxp_fast.ops._library import native
assert native['$native'] == 'loaded', native"
}

check_cpu() {
  step info 20 python3 -m pxp_fast info
  tests operators 60 tests/ops -k 'test_select and cpu and float32'
}

check_cuda() {
  step info 20 python3 -m pxp_fast info
  tests operators 100 tests/ops -k cuda
  # Their tests that need a GPU are those that are skipped without.
  tests engine 80 tests/lrp/test_cuda.py tests/test_step.py tests/test_prefetch.py tests/test_evaluate.py -k skipif
  sanitize memcheck 75 tests/ops \
    -k 'cuda and (definition or every_element or ties or batches_do_not) and not (opcheck or float64 or float32)'
  # One of everything that shares memory in a block, as this is slow: all tiles of products, wide heads, passes, ranks.
  local products='(on_cuda or wider) and (bfloat16 or tf32)'
  local passes='test_epsilon and (chunk or heads or tile or block) or layer_norm or select'
  sanitize racecheck 75 tests/ops/test_{linear,convolution}_epsilon.py::test_definition_of_real_layers_on_cuda \
    tests/ops/test_linear_epsilon.py::test_definition_shapes tests/ops/test_epsilon.py::test_definition_shapes \
    tests/ops/test_layer_norm.py::test_definition_shapes tests/ops/test_select.py::test_ties_go_to_the_lower_index \
    -k "cuda and ($products or $passes)"
}

bench_cpu() {
  benchmarks operators 120 ops.json bench/bench_select.py -k 46224
  end_to_end end-to-end 120 end_to_end_cpu.json --repeats 1 --batch 1 --models resnet18 --contenders pxp_fast
}

bench_cuda() {
  local contenders peers compiled
  mapfile -t contenders < <(python3 -c 'from bench.peers import CONTENDERS; print(*CONTENDERS, sep="\n")')
  mapfile -t peers < <(printf '%s\n' "${contenders[@]}" | grep -v '^compiled')
  mapfile -t compiled < <(printf '%s\n' "${contenders[@]}" | grep '^compiled')
  # What torch.compile takes long to make comes last.
  benchmarks operators 90 ops.json bench -k 'not compile'
  end_to_end end-to-end 130 end_to_end_cuda.json --device cuda --batch 64 --repeats 3 \
    --models resnet50 vit_b_16 resnet18 vgg16 --contenders "${peers[@]}"
  benchmarks 'compiled operators' 60 ops_compiled.json bench -k compile
  end_to_end 'end-to-end, compiled' 50 end_to_end_compiled_cuda.json --device cuda --batch 64 --repeats 3 \
    --models resnet50 resnet18 --contenders "${compiled[@]}" pxp_fast 'pxp_fast bfloat16'
}

profile_cpu() {
  step hottest 120 python3 -m bench.hottest --network resnet18 --batch 1 --out "$out/hottest.json"
}

profile_cuda() {
  step hottest 60 python3 -m bench.hottest --batch 64 --out "$out/hottest.json"
  local kernels
  kernels=$(sed -n 's/^kernels: //p' "$log" | tail -n 1 | tr ' ' '|')
  # The clocks stay as they are.
  step_with ncu ncu 150 ncu --clock-control none --kernel-name "regex:^(${kernels:-epsilon.*})\$" --launch-count 9 \
    --section SpeedOfLight --section Occupancy --section LaunchStats --csv --log-file "$out/ncu.csv" \
    python3 -m bench.hottest --batch 64 --plain
  if command -v nsys >/dev/null; then
    step nsys 120 nsys profile --trace cuda --cuda-graph-trace node --force-overwrite true --output "$out/nsys" \
      python3 -m bench.hottest --batch 64 --contender 'pxp_fast bfloat16 graph' --plain
  else
    summary+=("nsys: left out, none here")
  fi
}

if [ "$mode" = all ]; then parts=(check bench profile); else parts=("$mode"); fi
prepare
for part in "${parts[@]}"; do
  case ${part}_$device in
    check_cpu) check_cpu ;;
    check_cuda) check_cuda ;;
    bench_cpu) bench_cpu ;;
    bench_cuda) bench_cuda ;;
    profile_cpu) profile_cpu ;;
    profile_cuda) profile_cuda ;;
  esac
  deadline=$((SECONDS + budget))
done

{
  printf '%s\n' "${summary[@]}"
  echo "results: $out, $SECONDS s in all"
} | tee "$out/summary.txt"
exit "$failed"
