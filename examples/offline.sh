#!/usr/bin/env bash
# The guide's offline workflow step by step: the target's states go to disk once, the draft learns from there; the target is
# not in memory meanwhile, and further runs on the same states cost a fraction. From the repository's folder:
#   bash examples/offline.sh                             # Llama-3.1-8B on all GPUs of this machine
#   SETTINGS=mine.toml GPUS=2 bash examples/offline.sh   # other settings, two GPUs; GPUS= without any
# Run it again after any stop: what is done is not done again.
set -euo pipefail

SETTINGS=${SETTINGS:-examples/llama-3.1-8b.toml}
GPUS=${GPUS-auto}

eagle3 prepare --config "$SETTINGS"
eagle3 regenerate --config "$SETTINGS"
eagle3 merge --config "$SETTINGS"
eagle3 hidden-states --config "$SETTINGS" ${GPUS:+--gpus "$GPUS"}
eagle3 hidden-states verify --config "$SETTINGS"
eagle3 train --mode offline --config "$SETTINGS" ${GPUS:+--gpus "$GPUS"}
eagle3 eval --config "$SETTINGS" --draft-model-path runs/train/best
eagle3 export --config "$SETTINGS" --draft-model-path runs/train/best
eagle3 bench --config "$SETTINGS" --speculative-draft-model-path runs/draft
