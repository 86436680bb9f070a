"""One run: `python main.py --config configs/ia3_agnews_low.py [--config.KEY=VALUE ...] --workdir runs/x`."""

import sys

from jpeft.cli import run_experiment

if __name__ == "__main__":
    sys.exit(run_experiment(sys.argv))
