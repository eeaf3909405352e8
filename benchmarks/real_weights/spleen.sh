#!/usr/bin/env bash
# Spleen in CT (Medical Segmentation Decathlon, Task09): SAM's vit_b and MobileSAM, before and after LoRA.
#   benchmarks/real_weights/spleen.sh Task09_Spleen WORK
# Not run by the authors: docs/real_weights.md has the time, the memory and the scores to expect.
set -euo pipefail
data=$1 work=$2
medsam-tune download vit_b --output "$work/weights"
medsam-tune download vit_t --output "$work/weights"
medsam-tune split "$data" --out "$work/datalist.json" --modality CT --seed 0
medsam-tune check "$work/datalist.json"
medsam-tune evaluate --zero-shot --model vit_b --checkpoint "$work/weights/sam_vit_b_01ec64.pth" \
    --datalist "$work/datalist.json" --output "$work/zero_shot"
medsam-tune train lora --model vit_b --checkpoint "$work/weights/sam_vit_b_01ec64.pth" \
    --datalist "$work/datalist.json" --output "$work/vit_b"
medsam-tune train lora --model vit_t --checkpoint "$work/weights/mobile_sam.pt" \
    --datalist "$work/datalist.json" --output "$work/vit_t"
for model in vit_b vit_t; do
    medsam-tune evaluate --run "$work/$model" --prompts slices,box3d,none
    python "$(dirname "$0")/in_range.py" spleen "$work/$model/evaluation/summary.json"
done
