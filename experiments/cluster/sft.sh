#!/bin/sh
# A doctor in words from scratch, supervised, on eight GPUs by Ray Train. RUNS: a folder that every node sees.
exec medenv submit -- medenv train sft --output "${RUNS:?name a folder that every node sees}/sft" workers=8 gpus_per_worker=1 "$@"
