#!/usr/bin/env bash
# From a fresh clone to a model that learned to zoom: makes .venv, installs, runs the recipe, reports.
#
#   scripts/quickstart.sh                     the whole loop, under 20 minutes on 2 CPU cores
#   scripts/quickstart.sh --fast              a smoke run of every part, under 6 minutes
#   scripts/quickstart.sh --resume            goes on where an interrupted run stopped
#   scripts/quickstart.sh name=again seed=1   another run; every key of the recipe can be set so
#
# Arguments other than --fast go to `posttrain run`. scripts/setup.sh says what it reads from the environment.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE

recipe=quickstart
arguments=()
for argument in "$@"; do
    case $argument in
        --fast) recipe=quickstart-fast ;;
        -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit ;;
        *) arguments+=("$argument") ;;
    esac
done

# The recipe trains in two processes beside an engine: on three GPUs or more, or else on the CPU.
gpus=$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)
if ((gpus > 0 && gpus < 3)) && [[ ! -e .venv/installed-gpu ]]; then
    export POSTTRAIN_ENGINE=${POSTTRAIN_ENGINE:-cpu}
fi
if ((gpus > 0)) && [[ ${POSTTRAIN_ENGINE:-gpu} == cpu ]]; then
    arguments=(cluster.num_gpus=0 "${arguments[@]}")
fi

scripts/setup.sh
exec .venv/bin/posttrain run "$recipe" "${arguments[@]}"
