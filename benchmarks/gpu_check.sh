#!/bin/sh
# Everything that needs one GPU, in one call of under nine minutes: build from source, correctness
# against float64, main timings, compute-sanitizer. The last lines are a short table; before the rows
# stands the file that belongs into benchmarks/results, such as h200-2026-01-31.json.
#
#     sh benchmarks/gpu_check.sh [FOLDER [PART…]]     # where logs and figures go; default build/gpu
#
# Parts are build, operators, engine, kernels, step8, step1, peers, sanitizer; and, if asked for, draws,
# wide, batches, compiled and rows, or sweep for these five: other draws, networks and micro-batches,
# which take other calls, for each graph is compiled for a minute or so; and train, tests of
# pre-training and a whole run of the digits. Each part has its time, all together LIMIT seconds; one
# that fails or is cut off takes no other with it, but for the build. A second call into the same
# folder adds to its figures, and FOLDER/figures.tgz has all of them and the logs. Ends with 1 if any
# part failed. profile.md has the calls of a day.
#
# Needs nvcc, a C++ compiler and a Python that has a CUDA build of PyTorch, NumPy, SciPy, pytest,
# ninja and pybind11; downloads nothing. PYTHON names another Python. All but build and operators need
# dp-accounting, prv-accountant and dm-tree as well, train and doctor all that pyproject.toml names: where
# there is no registry, wheels of what is missing in the folder that WHEELS names, default
# build/wheels; Opacus there is one more peer. COMMIT says what the sources are of, where they have no
# history. DEVICE=cpu rehearses it all.
set -u
PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda}
WHEELS=${WHEELS:-build/wheels}
LIMIT=${LIMIT:-530}
OUT=${1:-build/gpu}
[ $# -eq 0 ] || shift
PARTS=${*:-build operators engine kernels step8 step1 peers sanitizer}
case " $PARTS " in *' sweep '*) PARTS="$PARTS draws wide batches compiled rows" ;; esac
ROOT=$(pwd)
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
SITE=$OUT/site
BEGAN=$(date +%s)
FAILED=0
TABLE=$OUT/table.txt
: > "$TABLE"
# However it ends, also where nothing was built: why must be known when the machine is gone.
trap 'cd "$OUT" && ls | grep -E "\.(txt|log|json)$" | tar czf figures.tgz -T -' EXIT

# time_for SECONDS: so many, or what is left.
time_for() {
    left=$((LIMIT - $(date +%s) + BEGAN))
    if [ "$left" -gt "$1" ]; then echo "$1"; else echo "$left"; fi
}

# part NAME SECONDS COMMAND…: runs it within its time, keeps its output, notes how it went and, of
# tests, how many ran.
part() {
    name=$1 limit=$(time_for "$2") from=$(date +%s)
    shift 2
    if [ "$limit" -lt 5 ]; then
        verdict='no time' FAILED=1
        : > "$OUT/$name.log"
    elif timeout -k 10 "$limit" "$@" > "$OUT/$name.log" 2>&1; then
        verdict=ok
    else
        verdict=FAILED FAILED=1
    fi
    ran=$(grep -E '^[0-9]+ (passed|failed|skipped|deselected).* in ' "$OUT/$name.log" | tail -n 1)
    printf '%-12s %-7s %4s s  %s\n' "$name" "$verdict" $(($(date +%s) - from)) "$ran" | tee -a "$TABLE"
    [ "$verdict" = ok ] || tail -n 30 "$OUT/$name.log"
}

# steps NAME SECONDS MODELS ARGUMENT…: timings of whole steps. They end in time with what they have;
# a part that is cut off has nothing.
steps() {
    name=$1 limit=$(time_for "$2") models=$3
    shift 3
    part "$name" "$limit" "$PYTHON" "$ROOT/benchmarks/dp_step.py" --device "$DEVICE" \
        --seconds $((limit - 15)) --rounds "${ROUNDS:-20}" --json "$RESULT" --models "$models" "$@"
}

wants() {
    case " $PARTS " in *" $1 "*) return 0 ;; esac
    return 1
}

GPU=$DEVICE
if [ "$DEVICE" = cuda ]; then
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader || exit 1
    nvcc --version | tail -n 1
    GPU=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr 'A-Z ' 'a-z-')
fi
"$PYTHON" -c "import torch
print('torch', torch.__version__, 'CUDA', torch.version.cuda)
torch.ones(1, device='$DEVICE')" || exit 1
RESULT=$OUT/${GPU#nvidia-}-$(date +%F).json

# Python sees what is installed here, and with -P not the sources beside it.
export PYTHONPATH="$SITE" PRIVIMAGE_BUILD="$DEVICE" PYTHONUNBUFFERED=1
INSTALL='-m pip install --quiet --no-deps --no-index --no-build-isolation --upgrade --target'
if wants build; then
    for wheel in "$WHEELS"/*.whl; do
        [ ! -e "$wheel" ] || "$PYTHON" $INSTALL "$SITE" "$wheel" || echo "$wheel does not fit here"
    done
    part build 300 "$PYTHON" $INSTALL "$SITE" .
    # An older build may lie there.
    [ $FAILED = 0 ] || exit 1
fi
# Else the reference would be held against itself.
"$PYTHON" -P -c "import sys
from privimage.ops import describe_build
sys.exit(not describe_build().startswith('$DEVICE,'))" || { echo "no $DEVICE build"; exit 1; }

# Says what is missing, and of each operator whether it agrees with the reference.
! wants build || part doctor 90 "$PYTHON" -P -m privimage doctor

# Fixtures of other tests would need the whole package; another machine may warn of other things.
TEST='-P -m pytest --noconftest -W default -q -p no:cacheprovider'
! wants operators || part operators 120 "$PYTHON" $TEST tests/ops/test_devices.py -k "$DEVICE"
! wants engine || part engine 240 "$PYTHON" $TEST tests/test_acceleration.py \
    tests/dp/test_recording.py tests/dp/test_recompute.py tests/dp/test_costs.py \
    tests/dp/test_private_engine.py -k "$DEVICE"
! wants train || part pretrain 120 "$PYTHON" $TEST tests/diffusion/test_pretrain.py -k gpu

# Timings run from another folder, so that a script sees its neighbours and not the sources. Ours and
# the ordinary steps first: a peer that fails takes nothing with it.
cd "$OUT" || exit 1
! wants kernels || part kernels 120 "$PYTHON" "$ROOT/benchmarks/kernels.py" --device "$DEVICE" \
    --json "$OUT/kernels.json"
# "call by call" is ours without a compiler, an eager step a turn: what the others' sums are held to.
OURS='privimage,captured,call by call'
! wants step8 || steps step8 300 cifar10 --draws 8 --among "$OURS"
! wants step1 || steps step1 300 cifar10 --draws 1 --among "$OURS"
# Few turns: a loop over images takes seconds for each.
PEERS='vmap,loop,hooks,ghost,call by call'
! wants peers || steps peers 180 cifar10 --draws 8 --among "$PEERS" --rounds 5
! wants draws || steps draws 240 cifar10 --draws 4 --among "$OURS"
# Of 132 images all that takes turns would be about 95 GB, more than an H100 has.
! wants draws || steps draws32 240 cifar10 --draws 32 --examples 66 --among "$OURS"
! wants wide || steps wide 480 wide,wider --draws 8 --among "$OURS"
! wants batches || steps batches 480 cifar10 --draws 8 --examples 64,264 --among "$OURS"
! wants compiled || steps compiled 300 cifar10 --draws 8 --among torch.compile,captured
! wants rows || steps rows 240 cifar10 --draws 1 --among 'bfloat16,captured,call by call'
# All that a user gets, from nothing to the report; cut off, it goes on in a second call. With so many
# steps pre-training is compiled as well.
! wants train || part train 240 "$PYTHON" -P -m privimage train --device "$DEVICE" --preset digits \
    --set pretrain.steps=2000 --out "$OUT/run"
cd "$ROOT" || exit 1

# The smallest shapes under the sanitizer, which slows kernels down a hundredfold. Each tensor has an
# allocation of its own, else it would not see who reads behind one. It looks at kernels alone, since
# a newer library's questions to an older driver, which says no, are errors to it as well; and at
# ours alone, but for initcheck, which must see who writes.
LAYERS='2x20x9 or 1x2x0x1x1x8x20x11 or 3x2x1x1x1x16x64x15 or 5x1x2x1x1x4x6x9'
# Every tile in bfloat16, those of 64 channels with more bands than stages; norms of whole vectors.
# Without Gram matrices, where no kernel is ours and initcheck would see a library's.
LAYERS="$LAYERS or $DEVICE-bfloat16 and (32x32x16 or 64x64x) or (last and 6x64x16x16)"
SMALL="$DEVICE and (update or sum or embedding or one_call or affine_rows or $LAYERS) and not gram"
if wants sanitizer && command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck initcheck; do
        ours='--kernel-name kns=privimage'
        [ $tool != initcheck ] || ours=''
        part "$tool" 120 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" $ours \
            --report-api-errors no --error-exitcode 1 "$PYTHON" $TEST tests/ops/test_devices.py -k "$SMALL"
    done
elif wants sanitizer; then
    echo 'sanitizer    no compute-sanitizer: skipped' | tee -a "$TABLE"
fi

echo
! wants kernels || grep -hE '^peaks|of a peak|does not run' "$OUT/kernels.log"
cat "$TABLE"
echo "$RESULT"
for name in step8 step1 peers draws draws32 wide batches compiled rows; do
    ! wants ${name%32} || grep -h 'K=' "$OUT/$name.log"
done
exit $FAILED
