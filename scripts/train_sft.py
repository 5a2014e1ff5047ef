"""`rrm-lm sft` as a file, for launchers: `accelerate launch scripts/train_sft.py --config ...`."""

import sys

from rrm_lm.cli.main import program

if __name__ == "__main__":
    program(["sft", *sys.argv[1:]])
