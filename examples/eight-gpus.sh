#!/usr/bin/env bash
# Llama-3.1-8B on the eight GPUs of one machine, from hidden states on disk; the data are those of the README's guide.
# Run it again after any stop: every step goes on where it was.
#   bash examples/eight-gpus.sh
set -euo pipefail

SETTINGS=examples/llama-3.1-8b.toml
DATA="--train-data-path cache/dataset/train.jsonl --eval-data-path cache/dataset/eval.jsonl"
STATES=cache/hidden_states

eagle3 hidden-states --config $SETTINGS $DATA --gpus 8 --encoding int8 --output-path $STATES
eagle3 train --config $SETTINGS --gpus 8 --mode offline --train-hidden-states-path $STATES/train --eval-hidden-states-path $STATES/eval
eagle3 export --draft-model-path runs/train/best
