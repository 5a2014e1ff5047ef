"""`rrm-lm evaluate` as a file, for launchers: `accelerate launch scripts/evaluate.py --config ...`."""

import sys

from rrm_lm.cli.main import program

if __name__ == "__main__":
    program(["evaluate", *sys.argv[1:]])
