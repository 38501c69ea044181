#!/bin/sh
# Everything that needs one GPU, in one call of under nine minutes: build from source, correctness
# against float64, compute-sanitizer, main timings. The last lines are a short table.
#
#     sh benchmarks/gpu_check.sh [FOLDER]     # where logs and figures go; default build/gpu
#
# Needs nvcc, a C++ compiler and a Python that has a CUDA build of PyTorch, NumPy, pytest, ninja and
# pybind11; downloads nothing. PYTHON names another Python. Ends with 1 if any part failed.
set -u
PYTHON=${PYTHON:-python3}
OUT=${1:-build/gpu}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
SITE=$OUT/site
FAILED=0
TABLE=$OUT/table.txt
: > "$TABLE"

# step NAME SECONDS COMMAND…: runs it within its time, keeps its output, notes how it went.
step() {
    name=$1 limit=$2
    shift 2
    began=$(date +%s)
    if timeout "$limit" "$@" > "$OUT/$name.log" 2>&1; then verdict=ok; else verdict=FAILED FAILED=1; fi
    printf '%-12s %-7s %4s s\n' "$name" "$verdict" $(($(date +%s) - began)) | tee -a "$TABLE"
    [ "$verdict" = ok ] || tail -n 30 "$OUT/$name.log"
}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader || exit 1
"$PYTHON" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)' || exit 1
nvcc --version | tail -n 1

step build 150 env PRIVIMAGE_BUILD=cuda "$PYTHON" -m pip install --quiet --no-deps --no-index \
    --no-build-isolation --upgrade --target "$SITE" .
# From here on Python sees the installed package, and with -P not the sources beside it.
export PYTHONPATH="$SITE"
step correctness 90 "$PYTHON" -P -m pytest tests/ops/test_devices.py -q -p no:cacheprovider

# The smallest shapes under the sanitizer, which slows kernels down a hundredfold.
SMALL='cuda and (update or sum or 2x20x9 or 1x2x0x1x1x8x20x11 or 3x2x1x1x1x16x64x15 or 5x1x2x1x1x4x6x9)'
if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck initcheck; do
        step "$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 1 \
            "$PYTHON" -P -m pytest tests/ops/test_devices.py -q -p no:cacheprovider -k "$SMALL"
    done
else
    echo 'sanitizer    no compute-sanitizer: skipped' | tee -a "$TABLE"
fi

step dp_step 120 "$PYTHON" -P benchmarks/dp_step.py --quick --device cuda --rounds 20 \
    --json "$OUT/dp_step.json"

echo
cat "$TABLE"
grep -h 'K=' "$OUT/dp_step.log" 2> /dev/null
exit $FAILED
