#!/bin/sh
# The same by RLlib: rollouts on eight CPUs of the cluster, one learner on a GPU. RUNS: a folder that every node sees.
exec medenv submit -- medenv train ppo --output "${RUNS:?name a folder that every node sees}/ppo-rllib" env.observe_belief=true \
    engine=rllib num_env_runners=8 num_learners=1 gpus_per_learner=1 "$@"
