#!/usr/bin/env bash
# Buildings from space (SpaceNet 2, one city): SAM's vit_b with adapters, at 0.3 m. Needs the extra "geo".
#   benchmarks/real_weights/spacenet.sh TILES WORK      (images/*.tif of PS-RGB and labels/*.geojson of the same names)
# Not run by the authors: docs/real_weights.md has the time, the memory and the scores to expect.
set -euo pipefail
data=$1 work=$2
medsam-tune download vit_b --output "$work/weights"
medsam-tune split "$data" --out "$work/datalist.json" --blocks 800m --seed 0
medsam-tune check "$work/datalist.json"
medsam-tune train adapter --overlay satellite --overlay scenes --model vit_b \
    --checkpoint "$work/weights/sam_vit_b_01ec64.pth" --datalist "$work/datalist.json" --output "$work/adapter"
medsam-tune evaluate --run "$work/adapter" --prompts slices,none
python "$(dirname "$0")/in_range.py" spacenet "$work/adapter/evaluation/summary.json"
