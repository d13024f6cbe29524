"""Start a contender."""

import sys

from contenders.serve import main

main(*sys.argv[1:])
