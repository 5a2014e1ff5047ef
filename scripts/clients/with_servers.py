"""The reward clients of verl, OpenRLHF and LLaMA-Factory against `rrm-lm serve`, with their code as it is published.

Only what their modules import besides (Ray, vLLM ...) is replaced by empty stand-ins. Reads the task from stdin, prints
the rewards that each client reads as JSON.
"""

import asyncio
import importlib.metadata
import importlib.util
import json
import sys
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import torch
from transformers import AutoTokenizer

FILES = {
    "verl": "verl/experimental/reward_loop/reward_loop.py",
    "openrlhf": "openrlhf/utils/agent.py",
    "llamafactory": "llamafactory/train/ppo/ppo_utils.py",
}


OTHERS = ("ray", "omegaconf", "tensordict")  # what their modules import and these functions do not need


class StandIns:
    """Gives an empty module for every import that a client makes of its own package and of `OTHERS`."""

    def find_spec(self, name, path=None, target=None):
        known = name.partition(".")[0] in (*FILES, *OTHERS)
        return importlib.util.spec_from_loader(name, self) if known else None

    def create_module(self, spec):
        module = MagicMock(spec=None)
        module.__spec__, module.__path__, module.__name__ = spec, [], spec.name
        return module

    def exec_module(self, module):
        pass


def load(package):
    """The module of a client, from the installed package's file."""
    [found] = [file for file in importlib.metadata.files(package) if str(file).endswith(FILES[package])]
    name = FILES[package].removesuffix(".py").replace("/", ".")
    parts = name.split(".")
    for end in range(1, len(parts)):
        parent = ".".join(parts[:end])
        sys.modules[parent] = ModuleType(parent)
        sys.modules[parent].__path__ = []
    module = importlib.util.module_from_spec(importlib.util.spec_from_file_location(name, found.locate()))
    module.__loader__.exec_module(module)
    return module


task = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(task["folder"])
sys.meta_path.append(StandIns())
talks = [
    ([{"role": role, "content": text} for role, text in prompt], response)
    for prompt, good, bad in task["pairs"]
    for response in (good, bad)
]
address = task["url"].removeprefix("http://")


class Row(list):
    """The part of verl's DataProto that its worker reads."""

    def __getitem__(self, place):
        return Row(super().__getitem__(place)) if isinstance(place, slice) else super().__getitem__(place)


def verl(engine):
    worker_class = load("verl").RewardLoopWorker
    worker = worker_class.__new__(worker_class)
    model = SimpleNamespace(rollout=SimpleNamespace(name=engine), model_path=task["folder"])
    worker.config = SimpleNamespace(reward=SimpleNamespace(reward_model=model))
    worker.reward_router_address = f"{address}/verl"
    worker.input_tokenizer = worker.reward_model_tokenizer = tokenizer

    def data(prompt, response):
        ids = [*tokenizer(response, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        batch = {"responses": torch.tensor(ids), "attention_mask": torch.ones(len(ids), dtype=torch.long)}
        return Row([SimpleNamespace(non_tensor_batch={"raw_prompt": prompt}, batch=batch)])

    async def ask():
        return [(await worker.compute_score_disrm(data(*talk)))["reward_score"] for talk in talks]

    return asyncio.run(ask())


def sampled(prompt, response):
    """A prompt as a trainer renders it, and the same with a response as a policy continues it."""
    start = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": response}], tokenize=False)
    return start, whole.rstrip()


def openrlhf():
    executor = load("openrlhf").SingleTurnAgentExecutor(f"{task['url']}/openrlhf?model={task['model']}")
    rows = [sampled(*talk) for talk in talks]

    async def ask():
        queries, prompts = [query for _, query in rows], [prompt for prompt, _ in rows]
        return (await executor._fetch_rewards_via_http(queries, prompts, [""] * len(rows)))[0]["rewards"]

    return asyncio.run(ask())


def llamafactory():
    messages = [sampled(*talk)[1] for talk in talks]
    return (
        load("llamafactory")
        .get_rewards_from_server(f"{task['url']}/llamafactory?model={task['model']}", messages)
        .tolist()
    )


found = {"verl, vLLM": verl("vllm"), "verl, SGLang": verl("sglang"), "OpenRLHF": openrlhf()}
print(json.dumps({**found, "LLaMA-Factory": llamafactory()}))
