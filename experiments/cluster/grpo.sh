#!/bin/sh
# GRPO of a pretrained model on eight GPUs by Ray Train. RUNS: a folder that every node sees.
exec medenv submit -- medenv train grpo --output "${RUNS:?name a folder that every node sees}/grpo" experiments/cluster/gpu8.toml "$@"
