"""What holds for every test: no network, one thread a process, repeatable random examples, nothing deprecated."""

import os
from collections.abc import Iterator

# Read when torch and Hugging Face's libraries are first imported, so they come before every other import. One thread
# each, because pytest-xdist runs a process on every core; and sums in one order give the same bits on every machine.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "agg"
# For the processes that tests start. The two exceptions are calls between libraries: PEFT asks transformers for the
# first, Accelerate passes the second to torch; `rrm-lm` ignores both, too.
os.environ["PYTHONWARNINGS"] = ",".join(
    ["error::FutureWarning"]
    + [f"ignore:`{name}` is deprecated:FutureWarning" for name in ("is_gradient_checkpointing", "broadcast_buffers")]
)

import pytest
from hypothesis import settings

from tests.deprecations import nothing_deprecated

# No deadline: two busy cores make any single example slow now and then. Derandomized, so that a failure repeats.
settings.register_profile("project", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def deprecations() -> Iterator[list[str]]:
    """Fails the test if a library logs that something is deprecated; what it has logged so far."""
    with nothing_deprecated() as heard:
        yield heard
