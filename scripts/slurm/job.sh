# The body of all jobs of this folder: the script that runs, where the hosts meet, and going on after preemption.
# shellcheck shell=bash
# Sourced by a batch script of this folder: job.sh SCRIPT [argument...], the script's path seen from scripts/.
set -euo pipefail
checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
script="$checkout/scripts/$1"
shift

# What your cluster needs before anything starts: modules, conda, the network's name. See site.example.sh.
site="${SITE:-$checkout/scripts/slurm/site.sh}"
if [[ -f "$site" ]]; then
    set +eu  # modules and conda read variables that nobody has set, and end lightly with a status
    # shellcheck source=scripts/slurm/site.example.sh
    source "$site"
    set -eu
elif [[ -n "${SITE:-}" ]]; then
    echo "error: SITE=$SITE: there is no such file" >&2
    exit 2
fi

MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export MASTER_ADDR LAUNCHER=srun  # MASTER_PORT follows from the job's number
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"

stopped=0
trap 'stopped=1; kill -TERM "$job" 2>/dev/null || true' TERM
bash "$script" "$@" &
job=$!
status=0
wait "$job" || status=$?
if (( stopped )); then  # the signal ended the waiting; now the ranks save
    status=0
    wait "$job" || status=$?
fi

# On preemption Slurm signals the ranks and requeues the job itself; at the time limit nobody else does. A training
# saves and ends with 0, and says so when it has ended and is started again. An evaluation keeps every answer as it
# comes, and SIGTERM ends it: 128 + 15. A rank that failed ends the job: the same fault would meet it again.
if (( stopped && (status == 0 || status == 143) )); then
    scontrol requeue "$SLURM_JOB_ID"
    status=0
fi
exit "$status"
