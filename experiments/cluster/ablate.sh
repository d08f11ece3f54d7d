#!/bin/sh
# Reward ablations, a Ray task each run: sh experiments/cluster/ablate.sh experiments/ablations/rewards.toml. RUNS: a folder that every node sees.
plan=${1:?name the plan} && shift
exec medenv submit -- medenv ablate "$plan" --output "${RUNS:?name a folder that every node sees}/ablate" "$@"
