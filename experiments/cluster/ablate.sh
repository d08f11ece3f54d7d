#!/bin/sh
# Reward ablations, a Ray task each run. Needs a settings file of `medenv ablate`; RUNS: a folder that every node sees.
exec medenv submit -- medenv ablate "${1:?name the settings}" --output "${RUNS:?name a folder that every node sees}/ablate"
