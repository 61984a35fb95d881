#!/usr/bin/env bash
# The guide's online workflow step by step: the target runs while the draft learns. From the repository's folder:
#   bash examples/online.sh                              # Llama-3.1-8B on all GPUs of this machine
#   SETTINGS=mine.toml GPUS=2 bash examples/online.sh    # other settings, two GPUs; GPUS= without any
# Run it again after any stop: what is done is not done again.
set -euo pipefail

SETTINGS=${SETTINGS:-examples/llama-3.1-8b.toml}
GPUS=${GPUS-auto}

# Exit code 3: done, though some rows could not be used; the command has said which and why.
step() { eagle3 "$@" || { code=$?; [ $code -eq 3 ] || exit $code; }; }

step prepare --config "$SETTINGS"
step regenerate --config "$SETTINGS"
step merge --config "$SETTINGS"
step cache --config "$SETTINGS"
step view-train-data 1 2 --config "$SETTINGS"
step train --config "$SETTINGS" ${GPUS:+--gpus "$GPUS"}
step export --config "$SETTINGS"
step bench --config "$SETTINGS"
