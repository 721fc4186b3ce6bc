#!/bin/bash
# Trains on several machines with SLURM: sbatch examples/slurm.sh --config configs/resnet50.py --workdir=DIR
#
# Every task is a process of one run. JAX finds the others in SLURM's variables. DIR is read and written by the first
# task alone. A task that fails ends the job, and SLURM requeues it: the run goes on from its last checkpoint.
#SBATCH --job-name=dfpjax
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=2       # one for each socket
#SBATCH --cpus-per-task=32
#SBATCH --hint=nomultithread
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120         # two minutes before the end: the run saves its step and stops

set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
exec srun --kill-on-bad-exit=1 --cpu-bind=cores python train.py --distributed --start_timeout=600 "$@"
