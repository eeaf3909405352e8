#!/usr/bin/env bash
# Organs in CT without prompts (Synapse, "Beyond the Cranial Vault"): SAM's vit_b and vit_h with LoRA of rank 4, as SAMed.
#   benchmarks/real_weights/synapse.sh SYNAPSE WORK      (images/ and labels/ of the 30 labelled scans, as NIfTI)
# SAMed scores 8 organs on 12 fixed scans: delete the other labels, and name the scans of each subset, in datalist.json.
# Not run by the authors: docs/real_weights.md has the time, the memory and the scores to expect.
set -euo pipefail
data=$1 work=$2
[[ -e $work/datalist.json ]] || medsam-tune split "$data" --out "$work/datalist.json" --modality CT --seed 0
medsam-tune check "$work/datalist.json"
medsam-tune download vit_b --output "$work/weights"
medsam-tune download vit_h --output "$work/weights"
medsam-tune train lora --no-prompt --model vit_b --checkpoint "$work/weights/sam_vit_b_01ec64.pth" --image-size 512 \
    --datalist "$work/datalist.json" --output "$work/vit_b" \
    --set network_def::rank=4 --set network_def::mask_decoder=true --set network_def::prompt_encoder=true
medsam-tune train lora --no-prompt --model vit_h --checkpoint "$work/weights/sam_vit_h_4b8939.pth" --image-size 512 \
    --datalist "$work/datalist.json" --output "$work/vit_h" --set batch_size=4 \
    --set network_def::rank=4 --set network_def::mask_decoder=true --set network_def::prompt_encoder=true
for model in vit_b vit_h; do
    medsam-tune evaluate --run "$work/$model"
    python "$(dirname "$0")/in_range.py" synapse "$work/$model/evaluation/summary.json"
done
