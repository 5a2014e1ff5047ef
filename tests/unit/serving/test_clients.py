"""The client packages that are installed here read the rewards of `rrm_lm.RewardModel`, unmodified."""

from __future__ import annotations

import math
from typing import Any

import pytest
from huggingface_hub import InferenceClient
from openai import OpenAI

import rrm_lm
from rrm_lm.serving.app import create_app
from rrm_lm.serving.models import Served
from rrm_lm.settings.serving import ServeArguments
from tests.unit.serving.conftest import served

TEXT = "<|im_start|>user\nwho?<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>"


def test_inference_client_and_openai_client(
    models: dict[str, Served], reward: rrm_lm.RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """huggingface_hub's client of Text Embeddings Inference, and OpenAI's, with which SGLang's embeddings are read."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the server is on loopback
    expected = float(reward.score("who?", ["yes"])[0])
    with served(create_app(models, ServeArguments(), "sesame")) as url:
        # It is written for lists of lists, and returns the first element of what TEI answers to one text.
        element: Any = InferenceClient(model=f"{url}/tei/predict", token="sesame").text_classification(TEXT)
        assert math.log(element.score / (1 - element.score)) == pytest.approx(expected, abs=1e-5)
        for prefix in ("sglang", "verl"):
            client = OpenAI(base_url=f"{url}/{prefix}/v1", api_key="sesame")
            found = client.embeddings.create(model="mine", input=[TEXT, TEXT])
            assert [one.embedding for one in found.data] == [[pytest.approx(expected, abs=1e-5)]] * 2
            assert [one.id for one in client.models.list()] == ["mine"]
