"""`rrm-lm policy` as a file, for launchers: `accelerate launch scripts/train_policy.py --config ...`."""

import sys

from rrm_lm.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["policy", *sys.argv[1:]]))
