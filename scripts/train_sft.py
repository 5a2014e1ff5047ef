"""`rrm-lm sft` as a file, for launchers: `accelerate launch scripts/train_sft.py --config ...`."""

import sys

from rrm_lm.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["sft", *sys.argv[1:]]))
