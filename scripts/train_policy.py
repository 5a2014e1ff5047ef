"""`rrm-lm policy` as a file, for launchers: `accelerate launch scripts/train_policy.py --config ...`."""

import sys

from rrm_lm.cli.main import program

if __name__ == "__main__":
    program(["policy", *sys.argv[1:]])
