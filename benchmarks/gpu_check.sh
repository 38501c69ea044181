#!/bin/sh
# Everything that needs one GPU, in one call of under nine minutes: build from source, correctness
# against float64, compute-sanitizer, main timings. The last lines are a short table; before the rows
# stands the file that belongs into benchmarks/results, such as h200-2026-01-31.json.
#
#     sh benchmarks/gpu_check.sh [FOLDER]     # where logs and figures go; default build/gpu
#
# Needs nvcc, a C++ compiler and a Python that has a CUDA build of PyTorch, NumPy, SciPy, pytest,
# ninja and pybind11; downloads nothing. PYTHON names another Python. A step needs dp-accounting,
# prv-accountant and dm-tree as well: where there is no registry, wheels of what is missing in the
# folder that WHEELS names, default build/wheels. Ends with 1 if any part failed.
set -u
PYTHON=${PYTHON:-python3}
OUT=${1:-build/gpu}
WHEELS=${WHEELS:-build/wheels}
ROOT=$(pwd)
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
SITE=$OUT/site
GPU=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr 'A-Z ' 'a-z-')
RESULT=$OUT/${GPU#nvidia-}-$(date +%F).json
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

# Python sees what is installed here, and with -P not the sources beside it.
export PYTHONPATH="$SITE" PRIVIMAGE_BUILD=cuda
INSTALL='-m pip install --quiet --no-deps --no-index --no-build-isolation --upgrade --target'
for wheel in "$WHEELS"/*.whl; do
    [ ! -e "$wheel" ] || "$PYTHON" $INSTALL "$SITE" "$wheel" || echo "$wheel does not fit here"
done
step build 120 "$PYTHON" $INSTALL "$SITE" .
# Fixtures of other tests would need the whole package; another machine may warn of other things.
TESTS='-P -m pytest tests/ops/test_devices.py tests/test_acceleration.py tests/dp/test_recording.py
    --noconftest -W default -q -p no:cacheprovider'
step correctness 100 "$PYTHON" $TESTS

# The smallest shapes under the sanitizer, which slows kernels down a hundredfold.
SMALL='cuda and (update or sum or embedding or one_call or 2x20x9 or 1x2x0x1x1x8x20x11 or 3x2x1x1x1x16x64x15 or 5x1x2x1x1x4x6x9)'
if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck initcheck; do
        step "$tool" 30 compute-sanitizer --tool "$tool" --error-exitcode 1 \
            "$PYTHON" $TESTS -k "$SMALL"
    done
else
    echo 'sanitizer    no compute-sanitizer: skipped' | tee -a "$TABLE"
fi

# Ours and the ordinary step first: a peer that fails there takes nothing with it. From another folder,
# so that the script sees its neighbours and not the sources.
cd "$OUT" || exit 1
STEP="$ROOT/benchmarks/dp_step.py --quick --device cuda --rounds 20"
step dp_step 150 "$PYTHON" $STEP --among privimage --json "$RESULT"
step kernels 30 "$PYTHON" "$ROOT/benchmarks/kernels.py" --device cuda --json "$OUT/kernels.json"
step peers 40 "$PYTHON" $STEP --among vmap,loop --json "$RESULT"

echo
grep -h 'of a peak' "$OUT/kernels.log" 2> /dev/null
cat "$TABLE"
echo "$RESULT"
grep -h 'K=' "$OUT/dp_step.log" "$OUT/peers.log" 2> /dev/null
exit $FAILED
