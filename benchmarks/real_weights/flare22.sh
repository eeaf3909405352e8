#!/usr/bin/env bash
# 13 organs in CT (FLARE22, the 50 labelled scans): MedSAM's weights as they are, and all of them tuned.
#   benchmarks/real_weights/flare22.sh FLARE22Train WORK      (its folders images/ and labels/)
# Not run by the authors: docs/real_weights.md has the time, the memory and the scores to expect.
set -euo pipefail
data=$1 work=$2
medsam-tune download medsam --output "$work/weights"
medsam-tune split "$data" --out "$work/datalist.json" --modality CT --seed 0
medsam-tune check "$work/datalist.json"
medsam-tune evaluate --zero-shot --model vit_b --checkpoint "$work/weights/medsam_vit_b.pth" \
    --datalist "$work/datalist.json" --output "$work/zero_shot" \
    --set normalisation=medsam --set rules::squash=true
medsam-tune train full --model vit_b --checkpoint "$work/weights/medsam_vit_b.pth" \
    --datalist "$work/datalist.json" --output "$work/full" \
    --set normalisation=medsam --set rules::squash=true --set gradient_checkpointing=true
medsam-tune evaluate --run "$work/full" --prompts slices,box3d,none
python "$(dirname "$0")/in_range.py" flare22 "$work/full/evaluation/summary.json"
