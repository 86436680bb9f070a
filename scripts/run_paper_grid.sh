#!/usr/bin/env bash
# The whole benchmark: the 60 cells of Table 1 and the 44 of Table 2, then the report beside the paper's numbers.
#
#   scripts/run_paper_grid.sh                                            FLAN-T5-XL, as the paper
#   scripts/run_paper_grid.sh --jobs 4                                   a cell on each of four GPUs
#   CONFIG=configs/mini.py scripts/run_paper_grid.sh --config.data.path=DATA          on a laptop
#   WORKDIR=runs/base scripts/run_paper_grid.sh --config.model.name=google/flan-t5-base --seeds 0,1,2
#
# What is given goes to `jpeft grid`; see its --help. Killed and started again, it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
config=${CONFIG:-configs/benchmark.py}
workdir=${WORKDIR:-runs/$(basename "$config" .py)}

status=0
jpeft grid --config "$config" --workdir "$workdir" "$@" || status=$?
if [ "$status" -gt 1 ]; then exit "$status"; fi # a wrong call; cells that failed are shown as missing
jpeft report "$workdir" --out "$workdir/report"
exit "$status"
