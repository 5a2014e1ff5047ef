#!/bin/bash
# Train on two nodes of a SLURM cluster. Five minutes before the time limit, and when the job is preempted, training saves
# a checkpoint after the current update, and the job is queued again; it then goes on from that checkpoint.
#   sbatch scripts/examples/slurm.sh outputs/hh policy --config configs/hh_policy.yaml
# The first word is the output folder. It, the models and the data are on a file system that all nodes share.
#SBATCH --job-name=rrm_lm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@300
set -u

out=$1
shift
words=("$@" --output_dir "$out")
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then # queued again: what is in the folder is from this job
    if compgen -G "$out/checkpoint-*" > /dev/null; then
        words+=(--resume_from_checkpoint true)
    else
        words+=(--overwrite_output_dir true)
    fi
fi
main=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
words+=(--accelerate_config "${ACCELERATE_CONFIG:-two_nodes}" --num_machines "$SLURM_NNODES")
words+=(--num_processes $((SLURM_NNODES * SLURM_GPUS_ON_NODE)))
words+=(--main_process_ip "$main" --main_process_port "${MAIN_PORT:-29500}")

stopped=0
# SLURM signals only this script. A signal to srun would kill the training; scancel passes it on to every process.
trap 'stopped=1; scancel --signal=TERM "$SLURM_JOB_ID.0"' TERM

# One launcher on each node, which knows its own number.
# shellcheck disable=SC2016
srun --ntasks-per-node=1 bash -c 'exec rrm-lm "$@" --machine_rank "$SLURM_NODEID"' rrm-lm "${words[@]}" &
child=$!
wait "$child"
code=$?
while [ "$stopped" = 1 ] && kill -0 "$child" 2> /dev/null; do # the signal ended `wait`, and srun is still saving
    wait "$child"
    code=$?
done
if [ "$stopped" = 1 ] && [ "$code" != 0 ]; then # it had not finished anyway
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code" # the end, or an error that would happen again
