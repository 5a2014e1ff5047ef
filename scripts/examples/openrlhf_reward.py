"""A reward model as OpenRLHF's reward function and agent. The environment variable REWARD_MODEL names it: a folder, or
the URL of `rrm-lm serve`.

python -m openrlhf.cli.train_ppo_ray --reward.remote_url scripts/examples/openrlhf_reward.py ...
python -m openrlhf.cli.train_ppo_ray --train.agent_func_path scripts/examples/openrlhf_reward.py ...
"""

import asyncio
import os
from typing import Any

import rrm_lm

reward_func = rrm_lm.reward_function(os.environ["REWARD_MODEL"]).reward_func

try:
    from openrlhf.utils.agent import (  # pyright: ignore[reportMissingImports]
        AgentInstanceBase,
        MultiTurnAgentExecutor,
    )
except ImportError:  # only the function is needed
    pass
else:

    class Agent(AgentInstanceBase):
        """One answer, and its reward."""

        def __init__(self, *args: Any, **options: Any) -> None:
            pass

        async def reset(self, states: dict[str, Any], **_: Any) -> dict[str, Any]:
            return {"observation": states["observation"]}

        async def step(self, states: dict[str, Any], **_: Any) -> dict[str, Any]:
            asked, answer = states["observation_text"], states["action_text"]
            found = await asyncio.to_thread(reward_func, [asked + answer], [asked], [states["label"]])
            return {**found, "environment_feedback": "", "done": True}

    class AgentExecutor(MultiTurnAgentExecutor):
        def __init__(self) -> None:
            super().__init__(Agent)
