#!/usr/bin/env bash
# The guide's offline workflow step by step: the target's states go to disk once, the draft learns from there; the target is
# not in memory meanwhile, and further runs on the same states cost a fraction. From the repository's folder:
#   bash examples/offline.sh                             # Llama-3.1-8B on all GPUs of this machine
#   SETTINGS=mine.toml GPUS=2 bash examples/offline.sh   # other settings, two GPUs; GPUS= without any
# Run it again after any stop: what is done is not done again.
set -euo pipefail

SETTINGS=${SETTINGS:-examples/llama-3.1-8b.toml}
GPUS=${GPUS-auto}

# Exit code 3: done, though some rows could not be used; the command has said which and why.
step() { eagle3 "$@" || { code=$?; [ $code -eq 3 ] || exit $code; }; }

step prepare --config "$SETTINGS"
step regenerate --config "$SETTINGS"
step merge --config "$SETTINGS"
step hidden-states --config "$SETTINGS" ${GPUS:+--gpus "$GPUS"}
step hidden-states verify --config "$SETTINGS"
step train --mode offline --config "$SETTINGS" ${GPUS:+--gpus "$GPUS"}
step eval --config "$SETTINGS"
step export --config "$SETTINGS"
step bench --config "$SETTINGS"
