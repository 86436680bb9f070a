"""`python -m jpeft.cli`: the same as the console script `jpeft`."""

import sys

from jpeft.cli import main

sys.exit(main())
