#!/usr/bin/env bash
# The guide's online workflow step by step: the target runs while the draft learns. From the repository's folder:
#   bash examples/online.sh                              # Llama-3.1-8B on all GPUs of this machine
#   SETTINGS=mine.toml GPUS=2 bash examples/online.sh    # other settings, two GPUs; GPUS= without any
# Run it again after any stop: what is done is not done again.
set -euo pipefail

SETTINGS=${SETTINGS:-examples/llama-3.1-8b.toml}
GPUS=${GPUS-auto}

eagle3 prepare --config "$SETTINGS"
eagle3 regenerate --config "$SETTINGS"
eagle3 merge --config "$SETTINGS"
eagle3 cache --config "$SETTINGS"
eagle3 view-train-data 1 2 --config "$SETTINGS"
eagle3 train --config "$SETTINGS" ${GPUS:+--gpus "$GPUS"}
eagle3 export --config "$SETTINGS" --draft-model-path runs/train/best
eagle3 bench --config "$SETTINGS" --speculative-draft-model-path runs/draft
