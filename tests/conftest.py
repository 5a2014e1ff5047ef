"""Settings of every test: no network, one thread per process, reproducible random examples, no deprecated calls."""

import gc
import os
from collections.abc import Iterator

# torch and Hugging Face's libraries read these at import, so they come before every other import. One thread
# per process, because pytest-xdist runs a process on every core, and because sums in one order give the same bits.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "agg"
# Processes that tests start share cached bytecode; without it each compiles all libraries again, which takes seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# For the processes that tests start. The two exceptions are calls between libraries: PEFT asks transformers for the
# first, and Accelerate passes the second to torch. `rrm-lm` also ignores both.
os.environ["PYTHONWARNINGS"] = ",".join(
    ["error::FutureWarning"]
    + [f"ignore:`{name}` is deprecated:FutureWarning" for name in ("is_gradient_checkpointing", "broadcast_buffers")]
)

import pytest
from hypothesis import settings

from tests.deprecations import nothing_deprecated

# No deadline: any single example can be slow on two busy cores. Derandomized, so that a failure can be reproduced.
settings.register_profile("project", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("project")


def pytest_collection_finish() -> None:
    """Exclude imported libraries from garbage collection, which trainers start often: each took most of a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def deprecations() -> Iterator[list[str]]:
    """Fails the test if a library logs that something is deprecated; gives what was logged so far."""
    with nothing_deprecated() as heard:
        yield heard
