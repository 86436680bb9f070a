#!/usr/bin/env bash
# The whole benchmark: the 60 cells of Table 1 and the 44 of Table 2, then the report beside the paper's numbers.
#
#   scripts/run_paper_grid.sh                                            FLAN-T5-XL, as the paper
#   scripts/run_paper_grid.sh --dry-run                                  what there is to do
#   scripts/run_paper_grid.sh --jobs 4                                   a cell on each of four GPUs
#   CONFIG=mini scripts/run_paper_grid.sh --config.data.path=DATA                     on a laptop
#   WORKDIR=runs/base scripts/run_paper_grid.sh --config.model.name=google/flan-t5-base --seeds 0,1,2
#
# What is given goes to `jpeft grid`; see its --help. Killed and started again, it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
config=${CONFIG:-benchmark}
workdir=${WORKDIR:-runs/$(basename "$config" .py)}

status=0
jpeft grid --config "$config" --workdir "$workdir" "$@" || status=$?
if [ "$status" -gt 1 ]; then exit "$status"; fi # a wrong call; cells that failed are shown as missing
for argument in "$@"; do
  case $argument in --dry-run | -h | --help) exit "$status" ;; esac # nothing was run: there is nothing to report on
done
if ! compgen -G "$workdir/*/result.json" > /dev/null; then
  echo "no cell has a result yet; see $workdir/<cell>/failure.json" >&2
  exit "$status"
fi
jpeft report "$workdir" --out "$workdir/report"
exit "$status"
