#!/usr/bin/env bash
# The two prepared calls for a GPU machine without a network, from a copy of the tree without git:
#   OUT=FOLDER bash benchmarks/gpu/session.sh 1|2 [--rehearse]
# Every step is a process of its own with a limit, appends to files of $OUT as it goes, and stops no later one. The last
# lines say which passed. --rehearse runs all of it on a CPU, at tiny sizes, and measures nothing; it needs no OUT.
# docs/contributing/gpu-session.md says what each call must give.
set -u
cd "$(dirname "$0")/../.."
CALL=${1:-} MODE=${2:-}
if [[ $MODE == --rehearse ]]; then OUT=${OUT:-$(mktemp -d)}; fi
[[ $CALL =~ ^[12]$ && ${MODE:---rehearse} == --rehearse && -n ${OUT:-} ]] || {
  echo "usage: OUT=FOLDER bash benchmarks/gpu/session.sh 1|2 [--rehearse]" >&2
  exit 2
}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
WORK=$(mktemp -d)
PYTHON=${PYTHON:-python3}
SITE=$PWD/.gpu-site   # vLLM's CUDA build is joined here, and kept between two calls of one machine
GPU=$PWD/.gpu         # what benchmarks.gpu.prepare put together
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD
REHEARSE=() LAST=0
if [[ $MODE ]]; then
  REHEARSE=(--rehearse) PATIENCE=${PATIENCE:-5} GPU=$WORK/gpu BUDGET=${BUDGET:-590}
  export TRITON_INTERPRET=1 TRITON_CACHE_DIR=$WORK/triton
else
  export TRITON_INTERPRET=0
  PATIENCE=1
  if [[ $CALL == 1 ]]; then BUDGET=${BUDGET:-330}; else BUDGET=${BUDGET:-300}; fi
fi
SECONDS=0

# step NAME LIMIT COMMAND...: within what is left of the call's time; LAST is how it ended
step() {
  local name=$1 limit=$(($2 * PATIENCE)) left=$((BUDGET - SECONDS)) start status=-1
  shift 2
  limit=$((limit < left ? limit : left))
  start=$(date +%s%N)
  if ((limit > 3)); then
    timeout --kill-after=5 "$limit" "$@" > "$WORK/$name.log" 2>&1 && status=0 || status=$?
  fi
  LAST=$status
  local taken=$((($(date +%s%N) - start) / 100000000))
  {
    flock 9
    printf '{"step": "%s", "status": %d, "seconds": %d.%d, "limit": %d}\n' \
      "$name" "$status" $((taken / 10)) $((taken % 10)) "$limit" >> "$WORK/steps.jsonl"
    { echo "==== $name: $status"; tail -c 200000 "$WORK/$name.log" 2> /dev/null; } >> "$OUT/log.txt"
    "$PYTHON" -m benchmarks.gpu.summary "$WORK/steps.jsonl" "$OUT/summary.json" > "$WORK/table.txt"
  } 9>> "$WORK/lock"
}
python_step() { step "$1" "$2" "$PYTHON" -m "${@:3}"; }

# pytest's own output is a file to be read; 5: nothing to run
gpu_tests() {
  "$PYTHON" -m pytest -o addopts= -v --noconftest tests/gpu -n "$WORKERS" --timeout 60 --durations 10 -rfE -m "$TESTS" "$@" \
    >> "$OUT/tests.txt" 2>&1
  local status=$?
  ((status == 5)) && status=0
  return "$status"
}
export -f gpu_tests
# what needs no GPU needs the interpreter
if [[ $MODE ]]; then TESTS="not slow" WORKERS=${WORKERS:-2}; else TESTS="gpu and not slow" WORKERS=${WORKERS:-14}; fi
export OUT PYTHON TESTS WORKERS

first_call() {
  local compile=(--arch sm_90 --rows "$OUT/compile.jsonl") waited=() arm
  if [[ $MODE ]]; then compile+=(--layers llama_3_8b_256_256); else compile+=(--recommended --processes 14); fi
  step compile 240 env -u TRITON_INTERPRET "$PYTHON" -m benchmarks.kernels.check "${compile[@]}" &
  local compiling=$!
  python_step environment 40 benchmarks.gpu.environment --rows "$OUT/env.json" "${REHEARSE[@]}"
  for arm in palu_16 palu_4 codec; do
    python_step "smoke-$arm" 60 benchmarks.gpu.smoke --arm "$arm" --rows "$OUT/smoke.jsonl" "${REHEARSE[@]}" &
    waited+=($!)
    # two cores of a rehearsal take one after the other
    if [[ $MODE ]]; then wait $!; fi
  done
  wait "${waited[@]}"
  step tests 110 bash -c gpu_tests
  for arm in palu palu_packed codec torch_sdpa; do latency "$arm" 26; done
  profile palu_16
  profile codec
  for arm in palu_16 palu_4 codec; do host_time "$arm"; done
  wait "$compiling"
}

# 64K first, for what is measured is kept when the time is over
latency() {
  local sizes=(--shape llama-3.1-8b --ranks 128/384 --contexts 65536 4096 16384 262144 --batch 1 8 16 32
    --most-tokens 2097152 --repeats 20 --warmup 3)
  if [[ $MODE ]]; then sizes=(--smoke --contexts 24 --batch 1 2 --repeats 1 --warmup 1); fi
  python_step "latency-$1" "$2" benchmarks.latency.kernel_latency --arms "$1" --rows "$OUT/rows.jsonl" "${sizes[@]}"
}

profile() {
  local profiler=(ncu --clock-control none --set full --kernel-name "regex:decode|reduce" --launch-skip 2 --launch-count 2)
  if [[ $MODE ]]; then profiler=(env); fi
  step "ncu-$1" 25 bash -c '"$@" >> "$OUT/ncu.txt" 2>&1' ncu "${profiler[@]}" \
    "$PYTHON" -m benchmarks.gpu.profile_target --arm "$1" --rows "$WORK/profiled.jsonl" "${REHEARSE[@]}"
  { echo "==== $1"; cat "$WORK/profiled.jsonl"; } >> "$OUT/ncu.txt" 2> /dev/null
}

host_time() {
  local rounds=20 limit=20
  if [[ $MODE ]]; then rounds=2 limit=120; fi
  step "host-$1" "$limit" env -u TRITON_INTERPRET "$PYTHON" -m benchmarks.gpu.host_time --arm "$1" --rounds "$rounds" \
    --rows "$OUT/rows.jsonl" "${REHEARSE[@]}"
}

second_call() {
  local arms=(dense palu codec) graphed=(palu codec) timed=(dense palu_16 palu_4 codec) arm
  if [[ $MODE ]]; then
    arms=(dense) graphed=() timed=(dense palu_16)  # a CPU has no graphs
    python_step prepare 120 benchmarks.gpu.prepare --out "$GPU" --rehearse
  else
    local scripts=("$GPU"/parts/part-*/assemble.py)
    step vllm 60 "$PYTHON" "${scripts[0]}" "$GPU/parts" "$SITE"
    local joined=$LAST
    if ((joined == 0)); then step wheel 20 "$PYTHON" -m pip install --quiet --no-index --no-deps --upgrade --target "$SITE" "$GPU"/wheel/*.whl; fi
    step tests 60 bash -c 'gpu_tests --last-failed --last-failed-no-failures none'
    # until the other parts have come, there is no vLLM for what follows
    if ((joined)); then return; fi
    export PYTHONPATH=$PWD:$SITE VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1
  fi
  python_step environment 40 benchmarks.gpu.environment --rows "$OUT/env.json" "${REHEARSE[@]}"
  for arm in flash_attention_3 flash_attention_3_fp8 vllm_triton; do latency "$arm" 20; done
  for arm in "${arms[@]}"; do
    python_step "tokens-$arm" 45 benchmarks.gpu.engine tokens --arm "$arm" --models "$GPU/models" \
      --rows "$OUT/tokens.jsonl" "${REHEARSE[@]}"
  done
  for arm in "${graphed[@]}"; do
    python_step "graphs-$arm" 45 benchmarks.gpu.engine tokens --arm "$arm" --models "$GPU/models" --graphs \
      --rows "$OUT/tokens.jsonl"
  done
  for arm in "${timed[@]}"; do
    python_step "time-$arm" 60 benchmarks.gpu.engine time --arm "$arm" --rows "$OUT/rows.jsonl" "${REHEARSE[@]}"
  done
}

if [[ $CALL == 1 ]]; then first_call; else second_call; fi
echo "results: $OUT"
cat "$WORK/table.txt"
rm -rf "$WORK"
