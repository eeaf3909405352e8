#!/usr/bin/env bash
# Page layout (PubLayNet): text, title, list, table and figure, found without prompts, by SAM's vit_b with LoRA.
#   benchmarks/real_weights/publaynet.sh PUBLAYNET WORK      (val.json and val/, 11,245 pages)
# Not run by the authors: docs/real_weights.md has the time, the memory and the scores to expect.
set -euo pipefail
data=$1 work=$2
medsam-tune download vit_b --output "$work/weights"
medsam-tune split "$data/val.json" --out "$work/datalist.json" --seed 0
medsam-tune check "$work/datalist.json"
medsam-tune train lora --overlay documents --model vit_b --checkpoint "$work/weights/sam_vit_b_01ec64.pth" \
    --datalist "$work/datalist.json" --output "$work/lora" --set epochs=3
medsam-tune evaluate --run "$work/lora" --prompts slices,none
python "$(dirname "$0")/in_range.py" publaynet "$work/lora/evaluation/summary.json"
