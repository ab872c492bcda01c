#!/bin/sh
# Submit the runs of a sweep as one SLURM job array and return:
#   slurm/submit.sh sweep=table2 dataset=mnist seeds=5
# The arguments are those of `python -m experiments.reproduce`. SBATCH_* variables (SBATCH_PARTITION, SBATCH_ACCOUNT, ...)
# reach sbatch as usual. The list of runs is fixed at submission; a finished run is skipped by its task. Prepare the data
# first (make data): jobs never download. Follow with squeue and `make status`.
set -eu
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || { echo "error: no .venv here; run 'make setup' first" >&2; exit 1; }
command -v sbatch >/dev/null || { echo "error: no sbatch on this machine; submit from a SLURM login node" >&2; exit 1; }
mkdir -p results/.slurm
manifest=$(mktemp results/.slurm/runs-XXXXXX)
.venv/bin/python -m experiments.cells "$@" >"$manifest" || { rm -f "$manifest"; exit 2; }
sbatch --array="1-$(grep -c . "$manifest")" slurm/run.sbatch "$manifest"
