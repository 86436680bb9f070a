#!/usr/bin/env bash
# Run the whole benchmark, the 60 cells of Table 1 and the 44 of Table 2, then write the report beside the paper's numbers.
#
#   scripts/run_paper_grid.sh                                            FLAN-T5-XL, as in the paper
#   scripts/run_paper_grid.sh --dry-run                                  list the cells and their states
#   scripts/run_paper_grid.sh --jobs 4                                   four cells at a time, one per GPU
#   CONFIG=mini scripts/run_paper_grid.sh --config.data.path=DATA                     on a laptop
#   WORKDIR=runs/base scripts/run_paper_grid.sh --config.model.name=google/flan-t5-base --seeds 0,1,2
#
# Arguments are passed on to `jpeft grid`; see its --help. A run that was killed resumes when started again.
set -euo pipefail
cd "$(dirname "$0")/.."
config=${CONFIG:-benchmark}
workdir=${WORKDIR:-runs/$(basename "$config" .py)}

status=0
jpeft grid --config "$config" --workdir "$workdir" "$@" || status=$?
if [ "$status" -gt 1 ]; then exit "$status"; fi # wrong usage; at 1, some cells failed and are reported as missing
for argument in "$@"; do
  case $argument in --dry-run | -h | --help) exit "$status" ;; esac # nothing was run, so there is nothing to report
done
if ! compgen -G "$workdir/*/result.json" > /dev/null; then
  echo "no cell has a result yet; see $workdir/<cell>/failure.json" >&2
  exit "$status"
fi
jpeft report "$workdir" --out "$workdir/report"
exit "$status"
