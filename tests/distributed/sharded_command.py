"""`rrm-lm`, sharded on the CPU as `--accelerate_config fsdp2` does on GPUs. Fails if one process holds it all."""

from __future__ import annotations

from typing import Any

from rrm_lm.cli.leaving import leave
from rrm_lm.cli.main import main
from rrm_lm.evaluation import scorers
from tests.distributed.processes import shard_on_cpu, share_held


def sharded_main() -> int:
    """The command's exit code."""
    own, shares = scorers.shard_for_use, []

    def shard_for_use(model: Any) -> None:
        own(model)
        shares.append(share_held(model))

    scorers.shard_for_use = shard_for_use
    shard_on_cpu()
    code = main()
    assert shares and max(shares) <= 0.55, shares
    return code


if __name__ == "__main__":
    leave(sharded_main())
