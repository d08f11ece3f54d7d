#!/bin/sh
# PPO in one process, on the head's CPU. RUNS: a folder that outlives the job. More settings may follow: sh experiments/cluster/ppo.sh seconds=60
exec medenv submit -- medenv train ppo --output "${RUNS:?name a folder that every node sees}/ppo" env.observe_belief=true "$@"
