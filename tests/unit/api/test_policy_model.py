"""`rrm_lm.Policy`: responses to one prompt or many, the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import pytest

import rrm_lm
from rrm_lm.errors import ConfigError, DataError, ModelError

PROMPTS = ["what is the moon made of?", [{"role": "system", "content": "short"}, {"role": "user", "content": "who?"}]]


@pytest.fixture(scope="module")
def policy(policy_folder: Path) -> rrm_lm.Policy:
    return rrm_lm.Policy.from_pretrained(policy_folder, dtype="float32")


def test_one_prompt_gives_a_text_and_a_list_gives_a_list(policy: rrm_lm.Policy) -> None:
    one = policy.respond(PROMPTS[0], max_new_tokens=8, seed=1)
    many = policy.respond(PROMPTS, max_new_tokens=8, seed=1)
    assert isinstance(one, str) and one and many[0] == one and len(many) == 2
    assert (
        policy.respond(PROMPTS[1], max_new_tokens=8, temperature=0)
        == policy.respond(PROMPTS, max_new_tokens=8, temperature=0)[1]
    )


def test_seeds_and_several_responses(policy: rrm_lm.Policy) -> None:
    first = policy.respond(PROMPTS[0], max_new_tokens=8, n=3, seed=5)
    assert len(first) == len(set(first)) == 3
    assert first == policy.respond(PROMPTS[0], max_new_tokens=8, n=3, seed=5)
    assert first != policy.respond(PROMPTS[0], max_new_tokens=8, n=3)
    assert [len(group) for group in policy.respond(PROMPTS, max_new_tokens=4, n=2, top_p=0.9, top_k=20)] == [2, 2]


def test_a_long_prompt_is_shortened(policy: rrm_lm.Policy) -> None:
    assert policy.respond("the sea " * 600, max_new_tokens=4, temperature=0)


def test_wrong_settings_and_prompts_are_named(policy: rrm_lm.Policy) -> None:
    with pytest.raises(ConfigError, match="max_new_tokens is 512, and the model has 512 positions"):
        policy.respond("who?", max_new_tokens=512)
    with pytest.raises(ConfigError, match="n is 0"):
        policy.respond("who?", n=0)
    with pytest.raises(DataError, match="nothing to respond to"):
        policy.respond([{"role": "user", "content": "who?"}, {"role": "assistant", "content": "the sea"}])


def test_save_and_load(policy: rrm_lm.Policy, tiny: Path, tmp_path: Path) -> None:
    policy.save_pretrained(tmp_path / "copy")
    again = rrm_lm.Policy.from_pretrained(tmp_path / "copy", dtype="float32")
    assert again.respond(PROMPTS, max_new_tokens=8, seed=2) == policy.respond(PROMPTS, max_new_tokens=8, seed=2)
    base = rrm_lm.Policy.from_pretrained(tiny, dtype="float32")
    assert base.respond(PROMPTS[0], max_new_tokens=4, seed=2)
    with pytest.raises(ModelError, match="whole model without an adapter"):
        base.save_pretrained(tmp_path / "base")
