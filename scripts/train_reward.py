"""`rrm-lm reward` as a file, for launchers: `accelerate launch scripts/train_reward.py --config ...`."""

import sys

from rrm_lm.cli.main import program

if __name__ == "__main__":
    program(["reward", *sys.argv[1:]])
