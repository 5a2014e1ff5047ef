"""Small parts of `rrm-lm policy`: names of rewards, the line of an update, and the reward as training has it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rrm_lm.api.policy.lines import line_of
from rrm_lm.api.policy.monitor import Optimised
from rrm_lm.api.policy.rewards import scorer_loader, short_names
from rrm_lm.evaluation.policies.samples import Drawn, rewards_of_drawn
from rrm_lm.evaluation.reports.history import Update
from rrm_lm.models.saving.adapters import has_template
from rrm_lm.models.tokenizers import load_tokenizer
from rrm_lm.training.reward_sources import PythonReward, RewardSum
from tests.tiny import prompt_of, tiny_chat


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["outputs/reward"], ["reward"]),
        (["outputs/a/reward", "outputs/b/reward"], ["a/reward", "b/reward"]),
        (["rewards.py:polite", "my.rewards:short"], ["polite", "short"]),
        (["one.py:f", "two.py:f"], ["one.py:f", "two.py:f"]),
        (["reward", "outputs/reward"], ["reward", "outputs/reward"]),
        (["org/model"], ["model"]),
        (["/models/x/"], ["x"]),
    ],
)
def test_rewards_are_called_by_what_tells_them_apart(names: list[str], short: list[str]) -> None:
    assert list(short_names(names).values()) == short


def test_the_line_of_an_update() -> None:
    measures = {"reward": 0.541, "kl": 1.318, "finished": 0.94, "length": 31.46}
    update = Update(3, True, measures, {"short": 0.541})
    said = "update  3 of 40: reward +0.541, KL 1.318, 94% ended, 31.5 tokens, 21.8 s, 13 min left"
    assert line_of(update, 40, 21.84, 780) == said
    last = Update(40, True, measures, {"short": 1.0, "polite": -0.459})
    said = "update 40 of 40: reward +0.541 (short +1.000, polite -0.459), KL 1.318, 94% ended, 31.5 tokens, 9.0 s"
    assert line_of(last, 40, 9, 0) == said


def test_the_optimised_reward_is_that_of_training() -> None:
    """Summed, and less the penalty where the token that ends a response did not come."""
    chat, prompt = tiny_chat(), prompt_of("who is it?")
    ids = chat.prompt_ids(prompt)
    words = chat.tokenizer("the moon", add_special_tokens=False).input_ids
    drawn = [Drawn(chat.sampled_line(ids, [*words, *end]), "the moon", bool(end)) for end in ([chat.end_id], [])]
    seen: list[str] = []

    def length(prompts: list, responses: list[str]) -> list[float]:
        seen.extend(responses)
        return [float(len(text)) for text in responses]

    rewards = RewardSum([PythonReward(length)], [0.5])
    reward = Optimised(rewards, chat.tokenizer, [chat.end_id], penalty=1.5)
    assert rewards_of_drawn(reward, [prompt], [drawn]) == [[4.0, 2.5]]
    assert seen == ["the moon", "the moon"]
    free = Optimised(rewards, chat.tokenizer, [chat.end_id], penalty=None)
    assert rewards_of_drawn(free, [prompt, prompt], [drawn[:1], drawn[1:]]) == [[4.0], [4.0]]


def test_a_chat_template_is_for_rewards_without_one(tiny: Path, tmp_path: Path) -> None:
    """A classifier of another program reads its own format, whatever the policy's is."""
    given = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    load = scorer_loader(
        {"dtype": "float32", "attn_implementation": None, "trust_remote_code": False},
        micro_batch_tokens=512,
        seed=0,
        chat_template=given,
    )
    own = load(str(tiny)).chat.tokenizer.chat_template
    assert own != given and own == load_tokenizer(str(tiny)).chat_template
    bare = shutil.copytree(tiny, tmp_path / "bare")
    for file in (bare / "chat_template.jinja", bare / "tokenizer_config.json"):
        if file.suffix == ".jinja":
            file.unlink(missing_ok=True)
        else:
            config = json.loads(file.read_text())
            config.pop("chat_template", None)
            file.write_text(json.dumps(config))
    assert not has_template(str(bare)) and has_template(str(tiny))
    assert load(str(bare)).chat.tokenizer.chat_template == given
