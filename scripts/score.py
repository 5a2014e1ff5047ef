"""`rrm-lm score` as a file, for launchers: `accelerate launch scripts/score.py --config ...`."""

import sys

from rrm_lm.cli.main import program

if __name__ == "__main__":
    program(["score", *sys.argv[1:]])
