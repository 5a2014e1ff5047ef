"""Rollouts by a server that speaks SGLang's HTTP: what differs from vLLM's (test_engines.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rrm_lm.errors import ConfigError, TrainingError
from rrm_lm.models.decoding.rollouts import roll_out
from rrm_lm.models.decoding.sampling import Sampling
from tests.rollout_server import RolloutServer, rollout_server
from tests.tiny_policy import CHAT, PROMPTS, logs, state, trainer

torch.set_num_threads(1)

ANSWER = {"text": "", "meta_info": {"output_token_logprobs": [[-1.0, 5, None]]}}  # of one token, which ends nothing
IDS = [CHAT.prompt_ids(prompt) for prompt in PROMPTS]


class SGLangServer(RolloutServer):
    """Answers as SGLang 0.5.23 does (`srt/entrypoints/http_server.py`, `srt/managers/tokenizer_manager.py`)."""

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": "tiny", "object": "model", "owned_by": "sglang"}]}
        if path == "/generate":
            missing = {*body["lora_path"]} - {*self.loaded}
            if missing:
                return 400, {"error": {"message": f"Got LoRA adapter that has never been loaded: {missing.pop()}"}}
            self.asked.append(body)
            rows = zip(body["input_ids"], body["lora_path"], body["sampling_params"], strict=True)
            return 200, self.change([self.generated(*row) for row in rows])
        if path == "/models" or not self.takes_adapters or path not in ("/load_lora_adapter", "/unload_lora_adapter"):
            return 404, {"detail": "Not Found"}
        name = body["lora_name"]
        if path == "/unload_lora_adapter":
            self.loaded.remove(name)
        else:
            self.put(name, body["lora_path"])
        return 200, {"success": True, "error_message": None, "loaded_adapters": dict.fromkeys(self.loaded, "path")}

    def generated(self, prompt: list[int], adapter: str, settings: dict[str, Any]) -> dict[str, Any]:
        """The model's own end token (2) always ends a response."""
        sampling = Sampling(settings["max_new_tokens"], settings["temperature"])
        ends = sorted({2, *settings["stop_token_ids"]})
        ((ids,),) = roll_out(self.backbone, adapter, [prompt], sampling, end_ids=ends, seed=settings["sampling_seed"])
        found = zip(self.log_probs(adapter, prompt, ids, sampling), ids, strict=True)
        return {"text": "", "meta_info": {"id": "1", "output_token_logprobs": [[*one, None] for one in found]}}


@pytest.fixture
def server() -> Iterator[RolloutServer]:
    with rollout_server(kind=SGLangServer) as fake:
        yield fake


def served(folder: Path, server: RolloutServer, **more: Any) -> Any:
    return trainer(folder, None, rollouts="server", rollout_url=server.url, **more)


def test_nearly_greedy_tokens_are_those_of_the_own_loop(tmp_path: Path, server: RolloutServer) -> None:
    made = served(tmp_path, server)
    cold = Sampling(8, temperature=1e-4)
    made.engine.refresh(0)
    found = made.engine.sample(IDS, cold, end_ids=[2], num_return=1, seed=0, first=0)
    made.engine.release()
    assert found.ids == made.agent.roll_out(IDS, cold, end_ids=[2])


def test_every_update_samples_from_the_adapter_of_that_update(tmp_path: Path, server: RolloutServer) -> None:
    made = served(tmp_path, server, max_steps=3, samples_per_prompt=2, temperature=0.7)
    before = state(made.agent)
    made.train()
    assert [name.split("-update-")[1] for name in server.pushed] == ["0", "1", "2"]
    assert [set(body["lora_path"]) for body in server.asked] == [{name} for name in server.pushed for _ in range(2)]
    assert server.loaded == [] and not list(tmp_path.glob(".*"))
    for entry in logs(made):
        assert float(entry["rollout/kl"]) < 1e-6
        assert float(entry["rollout/ratio_max"]) == pytest.approx(1.0, abs=1e-3)
    changed = {name for name, parameter in made.agent.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name, parameter in made.agent.named_parameters() if parameter.requires_grad}


def test_every_response_has_a_seed_of_its_own(tmp_path: Path, server: RolloutServer) -> None:
    engine = served(tmp_path, server).engine
    engine.refresh(0)
    options: dict[str, Any] = {"end_ids": [2], "num_return": 3, "seed": 5}
    whole = engine.sample(IDS, Sampling(6), first=0, **options)
    parts = [engine.sample(some, Sampling(6), first=first, **options) for first, some in ((0, IDS[:2]), (2, IDS[2:]))]
    assert whole.ids == [*parts[0].ids, *parts[1].ids]
    seeds = [one["sampling_seed"] for body in server.asked[: len(IDS)] for one in body["sampling_params"]]
    settings = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "stop_token_ids": [2]}
    assert all(settings.items() <= one.items() for one in server.asked[0]["sampling_params"])  # no model's defaults
    assert len(set(seeds)) == 3 * len(IDS) and all(0 <= seed < 2**62 for seed in seeds)
    assert any(len({tuple(ids) for ids in some}) > 1 for some in whole.ids)


@pytest.mark.parametrize("sampling", [Sampling(4, top_k=5), Sampling(4, top_p=0.9), Sampling(4, temperature=0.0)])
def test_truncated_sampling_is_refused(sampling: Sampling, tmp_path: Path, server: RolloutServer) -> None:
    """SGLang reports log-probabilities before truncation, which would be measured as a mismatch."""
    engine = served(tmp_path, server).engine
    engine.refresh(0)
    with pytest.raises(ConfigError, match="log-probabilities of all tokens"):
        engine.sample(IDS, sampling, end_ids=[2], num_return=1, seed=0, first=0)
    assert not server.asked


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda reply: reply[:-1], "answered with 1 responses"),
        (lambda reply: "not json", "cannot be read"),
        (lambda reply: reply[0], "cannot be read"),
        (lambda reply: [{"text": "", "meta_info": {}}] * 2, "cannot be read"),
        (lambda reply: [ANSWER, ANSWER], "another of the model's end tokens"),
        (lambda reply: [{"meta_info": {"finish_reason": {"type": "abort", "message": "no room"}}}] * 2,
         "aborted: no room"),
        (lambda reply: [one | {"meta_info": {"output_token_logprobs": [[None, 5, None]] * 6}} for one in reply],
         "not numbers"),
    ],
)  # fmt: skip
def test_a_wrong_answer_ends_the_run(change: Any, message: str, tmp_path: Path, server: RolloutServer) -> None:
    server.change = change
    engine = served(tmp_path, server).engine
    engine.refresh(0)
    with pytest.raises(TrainingError, match=message) as caught:
        engine.sample(IDS, Sampling(6), end_ids=[3], num_return=2, seed=0, first=0)
    assert "sglang.launch_server" in str(caught.value) and "/generate" in str(caught.value)
    assert "/v1/generate" not in str(caught.value)


def test_an_adapter_that_is_gone_is_an_error(tmp_path: Path, server: RolloutServer) -> None:
    """As after the server was started again: it refuses names that it does not know."""
    engine = served(tmp_path, server).engine
    engine.refresh(0)
    server.loaded.clear()
    with pytest.raises(TrainingError, match="has never been loaded"):
        engine.sample(IDS, Sampling(6), end_ids=[2], num_return=1, seed=0, first=0)


def test_a_server_without_lora_says_how_to_start_it(tmp_path: Path, server: RolloutServer) -> None:
    server.takes_adapters = False
    with pytest.raises(TrainingError, match=r"sglang\.launch_server.*--enable-lora"):
        served(tmp_path, server).engine.refresh(0)


def test_an_address_without_its_version_is_explained(tmp_path: Path, server: RolloutServer) -> None:
    """The server is not known yet, so both are named."""
    server.url = server.url.removesuffix("/v1")
    with pytest.raises(TrainingError, match=r"usually ends with /v1.*vllm serve.*sglang\.launch_server"):
        served(tmp_path, server)
