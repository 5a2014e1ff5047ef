"""`python -m rrm_lm ...` is the same as `rrm-lm ...`."""

from rrm_lm.cli.main import program

if __name__ == "__main__":
    program()
