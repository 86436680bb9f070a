"""`python -m jpeft.cli`: the console script, where it is not on the path."""

import sys

from jpeft.cli import main

sys.exit(main())
