#!/usr/bin/env bash
# run.sh: everything that is to be known of this program on a GPU, in one visit.
#
# It needs this folder, bash, and Python with PyTorch, whose wheels bring NVIDIA's libraries. Each
# part is a process of its own with a time limit of its own: what crashes or hangs is one line of the
# table, and the next part goes on. Results are written after each part, so that a visit that is cut
# off leaves what it had. Nothing changes a setting of the device.
set -uo pipefail

usage="usage: run.sh [--minutes N] [--only LIST] [--out DIR] [--python PROGRAM] [--images PATH]
              [--train DIR] [--mode MODE] [--stand-in DIR]

  --minutes N       how long the visit may take [8]
  --only LIST       some parts or groups, with commas between them
  --out DIR         where results go [\$OUT, or ./out]
  --python PROGRAM  the Python that can import torch [python3]
  --images PATH     a folder with CIFAR-10 as its authors or OpenOOD have it, for the training
                    [images that the program draws]
  --train DIR       the folder of the training, which goes on where an earlier visit ended
                    [a new one, gone afterwards]
  --mode MODE       of torch.compile: reduce-overhead or max-autotune [reduce-overhead]
  --stand-in DIR    a rehearsal with these libraries in the place of NVIDIA's: no times

parts, in order, by group:
  correctness   memory kernels tf32 networks
  ceilings      ceilings
  speed         forward diffood step backward classify
  detection     detection
  training      training"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
minutes=8 only="" out=${OUT:-$PWD/out} python=python3 images="" train="" mode=reduce-overhead stand_in=""
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) echo "$usage"; exit 0 ;;
        --minutes | --only | --out | --python | --images | --train | --mode | --stand-in)
            if [ $# -lt 2 ]; then echo "error: \`$1\` expected a value" >&2; exit 2; fi
            name=${1#--}
            printf -v "${name//-/_}" '%s' "$2"
            shift 2 ;;
        *) echo "error: unexpected argument \`$1\`"$'\n\n'"$usage" >&2; exit 2 ;;
    esac
done
case $minutes in
    "" | *[!0-9]* | 0*) echo "error: --minutes expected a whole number above 0, got \`$minutes\`" >&2; exit 2 ;;
esac
for word in ${only//,/ }; do
    case " correctness memory kernels tf32 networks ceilings speed forward diffood step backward classify detection training " in
        *" $word "*) ;;
        *) echo "error: --only expected parts or groups, got \`$word\`"$'\n\n'"$usage" >&2; exit 2 ;;
    esac
done
if [ -n "$only" ] && [ -z "${only//,/}" ]; then
    echo "error: --only expected parts or groups, got \`$only\`" >&2
    exit 2
fi
case $mode in
    reduce-overhead | max-autotune) ;;
    *) echo "error: --mode expected reduce-overhead or max-autotune, got \`$mode\`" >&2; exit 2 ;;
esac
if [ -n "$images" ] && [ ! -d "$images" ]; then
    echo "error: --images expected a folder, got \`$images\`" >&2
    exit 2
fi
if ! "$python" -c "import torch" 2>/dev/null; then
    echo "error: \`$python\` cannot import torch"$'\n\n'"hint: name one that can with --python" >&2
    exit 96
fi

if ! said=$("$here/bin/oodbench" --version 2>&1); then
    echo "error: the programs do not start on this machine: $said"$'\n\n'"hint: they need a C library as new as that of the machine they were built on" >&2
    exit 96
fi

begin=$SECONDS
end=$((begin + 60 * minutes))
# Where nothing can be written, nothing is run.
if ! { mkdir -p "$out" && out=$(cd "$out" && pwd) && : >"$out/log.txt"; } 2>/dev/null; then
    echo "error: cannot write to \`$out\`"$'\n\n'"hint: name another folder with --out" >&2
    exit 110
fi
if ! work=$(mktemp -d "${TMPDIR:-/tmp}/oodbench-gpu.XXXXXX"); then
    echo "error: no temporary folder"$'\n\n'"hint: name one that can be written to with TMPDIR" >&2
    exit 110
fi
mkdir -p "$work/results" "$work/logs"
: >"$work/parts.tsv"
started=()

cleanup() {
    for id in ${started[@]+"${started[@]}"}; do
        kill -- "-$id" 2>/dev/null || kill "$id" 2>/dev/null
    done
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export OODBENCH_CACHE_DIR=$work/cache OODBENCH_SHARED=$here/shared OODBENCH_DEVICE=cuda:0
export TORCHINDUCTOR_CACHE_DIR=$work/inductor TORCHINDUCTOR_FX_GRAPH_CACHE=1 TORCHINDUCTOR_AUTOGRAD_CACHE=1
# What the driver compiles is compiled once for all parts.
export CUDA_CACHE_PATH=$work/cuda-cache CUDA_CACHE_MAXSIZE=2147483648
device=cuda:0
common=(--work "$work")
rehearsal=()
if [ -n "$stand_in" ]; then
    device=cpu
    rehearsal=(--stand-in --tiny)
    export OODBENCH_LIBRARIES=$stand_in
    echo "stand-in driver: no times"
else
    echo "NVIDIA's libraries:"
    OODBENCH_LIBRARIES=$("$python" "$here/python/gpu_libraries.py")
    code=$?
    export OODBENCH_LIBRARIES
    if [ $code -ne 0 ]; then
        echo "error: a library is missing that a build for GPUs needs"$'\n\n'"hint: set LD_LIBRARY_PATH to where it lies; libcuda.so.1 comes with NVIDIA's driver" >&2
        exit 96
    fi
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.current.sm,clocks.max.sm --format=csv,noheader |
        tee -a "$out/log.txt"
fi
cat "$here/about.txt" | tee -a "$out/log.txt"

# Our programs get NVIDIA's libraries; Python finds its own.
ours() {
    env LD_LIBRARY_PATH="$OODBENCH_LIBRARIES" "$@"
}
export -f ours

wanted() { # NAME GROUP
    [ -z "$only" ] || [[ ",$only," == *",$1,"* ]] || [[ ",$only," == *",$2,"* ]]
}

# Writes what there is so far.
results() {
    "$python" "$here/python/gpu_table.py" --parts "$work/parts.tsv" --results "$work/results" \
        --about "$here/about.txt" --out "$out" ${stand_in:+--stand-in}
}

# Runs a part: its name, its group, its limit in seconds, and a command.
part() {
    local name=$1 group=$2 limit=$3 left=$((end - SECONDS)) from=$SECONDS code counts
    shift 3
    wanted "$name" "$group" || return 0
    # A rehearsal has all the time that it takes.
    if [ -n "$stand_in" ]; then left=$((limit *= 30)); fi
    if [ "$left" -lt 5 ]; then
        printf '%s\t%s\tno time\t0\t\n' "$name" "$group" >>"$work/parts.tsv"
        echo "$name: no time left"
        return 0
    fi
    if [ "$limit" -gt "$left" ]; then limit=$left; fi
    export PART_SECONDS=$limit
    timeout --kill-after=5 "$limit" "$@" >"$work/logs/$name" 2>&1 </dev/null
    code=$?
    # How many tests passed, where it was tests.
    counts=$(grep -ao 'test result: .* failed' "$work/logs/$name" | tail -n 1)
    printf '%s\t%s\t%s\t%s\t%s\n' "$name" "$group" "$code" "$((SECONDS - from))" "${counts##*\. }" >>"$work/parts.tsv"
    {
        echo "===== $name: ended with $code after $((SECONDS - from)) s"
        tail -c 1000000 "$work/logs/$name"
    } >>"$out/log.txt"
    case $code in
        0) echo "$name: ok, $((SECONDS - from)) s" ;;
        124 | 137) echo "$name: cut off after $((SECONDS - from)) s" ;;
        *) echo "$name: failed with $code after $((SECONDS - from)) s: $(grep -av '^ *$' "$work/logs/$name" | tail -n 1 | cut -c 1-200)" ;;
    esac
    results >/dev/null
    if [ $? -gt 1 ]; then echo "warning: could not write results" >&2; fi
}

# What torch.compile makes is made while the tests run, which leave most cores idle.
warm() {
    local task
    for task in diffood forward step backward classify; do
        wanted "$task" speed || continue
        TORCHINDUCTOR_COMPILE_THREADS=4 timeout --kill-after=5 $((end - SECONDS)) "$python" "$here/python/gpu_speed.py" --task "$task" --warm \
            --device "$device" --mode "$mode" --work "$work" >"$work/logs/warm-$task" 2>&1 </dev/null &
        started+=($!)
    done
}
# Some tests take all of the device's memory: before anybody else uses it.
part memory correctness 45 bash -c 'ours "$@"' - "$here/bin/device-networks" --test-threads=1 memory::
if [ -z "$stand_in" ]; then warm; fi

part kernels correctness 120 bash -c 'ours "$@"' - "$here/bin/device-kernels" --test-threads=1
# The switch for TF32 holds for a process. The stand-in rounds only if it is told to.
part tf32 correctness 30 bash -c 'STANDIN_TF32=1 ours "$@"' - "$here/bin/device-tf32"
part networks correctness 150 bash -c 'ours "$@"' - "$here/bin/device-networks" --test-threads=1 \
    --skip memory::

# Times are taken when nothing else runs; for what is not compiled by then, nobody waits longer.
limit=$((SECONDS + 90))
if [ "$limit" -gt $((end - 150)) ]; then limit=$((end - 150)); fi
for id in ${started[@]+"${started[@]}"}; do
    while kill -0 "$id" 2>/dev/null && [ $SECONDS -lt $limit ]; do sleep 1; done
    kill "$id" 2>/dev/null
    wait "$id" 2>/dev/null
done
started=()
for log in "$work"/logs/warm-*; do
    if [ -s "$log" ]; then { echo "===== ${log##*/}"; tail -c 20000 "$log"; } >>"$out/log.txt"; fi
done

part ceilings ceilings 30 "$python" "$here/python/gpu_ceilings.py" --device "$device" \
    ${stand_in:+--tiny} --out "$work/results/ceilings.json"
speed() { # TASK LIMIT
    part "$1" speed "$2" "$python" "$here/python/gpu_speed.py" --task "$1" --device "$device" --mode "$mode" \
        --ours "$here/bin/speed" --out "$work/results/$1.json" "${common[@]}" ${rehearsal[@]+"${rehearsal[@]}"}
}
speed forward 60
speed diffood 75
speed step 60
part detection detection 60 "$python" "$here/python/gpu_detection.py" --program "$here/bin/oodbench" \
    --out "$work/results/detection.json" "${common[@]}" ${rehearsal[@]+"${rehearsal[@]}"}
part training training 60 "$python" "$here/python/gpu_training.py" --program "$here/bin/oodbench" \
    ${images:+--images "$images"} ${train:+--train "$train"} \
    --out "$work/results/training.json" "${common[@]}" ${rehearsal[@]+"${rehearsal[@]}"}
speed backward 60
speed classify 45

echo
results
code=$?
echo
echo "results are in $out: results.json, table.txt, log.txt"
exit $code
