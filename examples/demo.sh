#!/usr/bin/env bash
# SFT of a small diffusion LM, EGSPO-SA on top of it, both evaluated on held-out puzzles, and a report.
# `make demo` runs it. A second run reuses whatever the first finished.
#   OUT=DIR    where the runs go (default runs/demo)
#   DATA=FILE  a public puzzle file to evaluate on too (CSV with Puzzle,Solution, or JSON lines)
#   RANKS=N    processes of the RL run (default: the number of cores, or of GPUs if there are fewer, at most 4)
set -euo pipefail
out=${OUT:-runs/demo}
if [[ -n ${DATA:-} && ! -f $DATA ]]; then
  echo "DATA=$DATA is no file: give a CSV with Puzzle,Solution or JSON lines, or leave DATA out" >&2
  exit 2
fi
cores=$(python -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
most=$((gpus > 0 && gpus < cores ? gpus : cores)) # no two ranks share a GPU
ranks=${RANKS:-$((most < 4 ? most : 4))}
((ranks != 3)) || ranks=2 # the groups of a batch share out over 1, 2 or 4 ranks

say() { printf '\n$ %s\n' "$*"; "$@"; }
evaluate() { # model, name, options
  local model=$1 name=$2 && shift 2
  [[ -s $out/rl/eval/$name.json ]] || say egspo eval "$model" --out "$out/rl/eval/$name.json" "$@"
}

say egspo sft sudoku/task sudoku/sft "output_dir=$out/sft"
say torchrun --standalone --nproc_per_node "$ranks" -m egspo train sudoku/task sudoku/rl \
  "model.model_name_or_path=$out/sft/model" "output_dir=$out/rl"
evaluate "$out/sft" test-before
evaluate "$out/rl" test-after
if [[ -n ${DATA:-} ]]; then
  name=$(basename "$DATA")
  name=${name%%.*}
  evaluate "$out/sft" "$name-before" --data "$DATA"
  evaluate "$out/rl" "$name-after" --data "$DATA"
fi
say egspo report "$out/rl"
printf '\nrun folder: %s\nnext: egspo sample %s --index 3 --trace trace.html\n' "$out/rl" "$out/rl"
