#!/usr/bin/env bash
# What a GPU makes of the package: every part of benchmarks/gpu.py, each a process with a time limit.
#
#     bash benchmarks/gpu.sh [--small] OUT
#
# OUT/gpu.jsonl has the numbers as they come, OUT/gpu.md the page, OUT/gpu.log what was said.
# WHEELS: a folder of wheels of what this Python lacks. BUDGET: seconds for all parts, 470 by default.
# PARTS: names of parts, in another order or fewer. Run it from the root of the repository.
set -u
small=
[ "${1:-}" = --small ] && { small=--small; shift; }
out=${1:?"usage: bash benchmarks/gpu.sh [--small] OUT"}
python=${PYTHON:-python3}
budget=${BUDGET:-470}
mkdir -p "$out"
log=$out/gpu.log
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TQDM_DISABLE=1
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" \
        "$WHEELS"/*.whl || exit 1
    export PYTHONPATH="$PYTHONPATH:$site"
fi
declare -A limit=([exact]=45 [encoder]=60 [steps]=90 [large]=60 [small]=40 [cached]=40 [compiled]=100 [compiled_large]=110 [loader]=90 [attention]=40)
for part in ${PARTS:-exact encoder steps large small cached compiled compiled_large loader attention}; do
    left=$((budget - SECONDS))
    [ "$left" -lt 10 ] && { echo "$part: no time left" | tee -a "$log"; continue; }
    seconds=${limit[$part]}
    [ -n "$small" ] || [ "$seconds" -gt "$left" ] && seconds=$left  # a CPU may take longer
    start=$SECONDS
    timeout -k 5 "$seconds" "$python" benchmarks/gpu.py "$part" "$out" $small >>"$log" 2>&1
    echo "$part: exit $? after $((SECONDS - start)) s" | tee -a "$log"
done
timeout -k 5 60 "$python" benchmarks/gpu.py page "$out" >>"$log" 2>&1 || tail -5 "$log"
[ -s "$out/gpu.md" ]
