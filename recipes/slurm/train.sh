#!/usr/bin/env bash
# A run on one node or many: the arguments are those of `egspo train`, or of COMMAND.
#   sbatch --nodes 2 --gpus-per-node 8 recipes/slurm/train.sh paper/llada-8b-sudoku train.prompts_per_step=16
#   COMMAND=sft sbatch recipes/slurm/train.sh models/llada-8b my-sft.yaml
# A job that is stopped goes on from its last checkpoint when it is submitted again. The files of the model have
# to be in the hub cache of the nodes, or the nodes on the network. output_dir has to be one folder that all nodes see.
#SBATCH --job-name=egspo
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=%x-%j.log
set -euo pipefail
(($# > 0)) || { echo "usage: sbatch recipes/slurm/train.sh CONFIG.yaml... [key=value...]" >&2; exit 2; }
[[ -z ${VENV:-} ]] || source "$VENV/bin/activate"

nodes=${SLURM_JOB_NUM_NODES:-1}
gpus=${SLURM_GPUS_ON_NODE:-8}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
# Blocks of scores change their size from step to step.
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
# One rendezvous a job: two jobs on one machine must not meet.
port=$((20000 + SLURM_JOB_ID % 20000))

srun --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-32}" torchrun \
  --nnodes="$nodes" --nproc_per_node="$gpus" \
  --rdzv_backend=c10d --rdzv_id="$SLURM_JOB_ID" --rdzv_endpoint="$head:$port" \
  -m egspo "${COMMAND:-train}" "$@"
