"""The embedded SmolLM2-135M-Instruct: what tiny models cannot show about real weights and a real tokenizer.

About a minute. The model is loaded once for all tests here, and once more by each other library that reads our files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rrm_lm.cli.main import main
from rrm_lm.feedback.reading.datasets import load_feedback
from rrm_lm.feedback.records import Comparison, Message
from rrm_lm.models.backbone import Backbone, check_logits
from rrm_lm.models.pretrained import DEFAULT_MODEL, load_causal_lm
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.models.reward_files import load_classifier, merge_reward_model
from rrm_lm.models.tokenizers import load_tokenizer
from rrm_lm.settings.models import ModelArguments
from rrm_lm.text.batching import collate, share
from rrm_lm.text.chat import ChatFormat, Line
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.examples import ExampleBuilder
from rrm_lm.training.reward.trainer import RewardTrainer

pytestmark = pytest.mark.real

HELD_OUT = Path(__file__).parents[2] / "data" / "assistant" / "heldout.jsonl.gz"
ASKED = (Message("system", "Be brief."), Message("user", "What is 2+2?"))


def alike(found: Any, expected: Tensor) -> None:
    """Equal up to rounding: 30 layers of float32 sums in another order. Below 1e-5 on the author's machine."""
    torch.testing.assert_close(torch.as_tensor(found), expected, atol=3e-5, rtol=3e-5)


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(load_tokenizer(DEFAULT_MODEL), 384, 32)


@pytest.fixture(scope="module")
def pairs() -> list[Comparison]:
    """Three real pairs of different lengths with critiques, from the held-out part of data/assistant."""
    found = [c for c in load_feedback(str(HELD_OUT)).comparisons if c.chosen_critiques and c.rejected_critiques]
    found.sort(key=lambda c: len(c.chosen) + len(c.rejected))
    return [found[0], found[len(found) // 2], found[-len(found) // 10]]


@dataclass
class Stepped:
    """A reward model after one step of training, and every parameter as it was before."""

    model: RewardModel
    before: dict[str, Tensor]
    trainable: set[str]


@pytest.fixture(scope="module")
def model() -> RewardModel:
    """A reward model with a nonzero initial adapter."""
    backbone = Backbone(load_causal_lm(DEFAULT_MODEL, dtype="float32"), 0)
    check_logits(backbone)
    torch.manual_seed(0)
    model = RewardModel.create(backbone, ModelArguments(lora_r=8).lora(), RewardSettings(DEFAULT_MODEL, False, 384, 32))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    return model


@pytest.fixture(scope="module")
def stepped(
    model: RewardModel, chat: ChatFormat, pairs: list[Comparison], tmp_path_factory: pytest.TempPathFactory
) -> Stepped:
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    args = RewardConfig(
        output_dir=str(tmp_path_factory.mktemp("run")),
        use_cpu=True,
        max_steps=1,
        warmup_steps=0,
        learning_rate=1e-3,
        per_device_train_batch_size=len(pairs),
        save_strategy="no",
        disable_tqdm=True,
    )
    examples = ExampleBuilder(chat, model.backbone, narrow=True).comparisons(pairs)
    RewardTrainer(model, args, examples, processing_class=chat.tokenizer).train()
    return Stepped(model.eval(), before, trainable)


@pytest.fixture(scope="module")
def saved(stepped: Stepped, chat: ChatFormat, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The adapter folder with a merged checkpoint (half a gigabyte), which is deleted afterwards."""
    folder = tmp_path_factory.mktemp("saved") / "reward"
    stepped.model.save(folder, chat.tokenizer)
    merge_reward_model(folder, folder / "merged", chat.tokenizer)
    yield folder
    (folder / "merged" / "model.safetensors").unlink()


def lines_of(chat: ChatFormat, pairs: Sequence[Comparison]) -> list[Line]:
    return [line for c in pairs for r in (c.chosen, c.rejected) for line in chat.encode(c.prompt, [r]).lines[0]]


def padded_rewards(model: RewardModel, lines: Sequence[Line], side: str) -> Tensor:
    """Every line in a separate row."""
    with torch.inference_mode():
        return model(collate([share([line.ids]) for line in lines], 0, side), lines, with_critiques=False).rewards


def test_the_tokens_of_a_known_conversation(chat: ChatFormat) -> None:
    (line,) = chat.encode(ASKED, ["It is 4."], [["Right, and short."]]).lines[0]
    start, end, newline = 1, 2, 198  # <|im_start|>, <|im_end|>, \n
    assert list(line.ids) == [
        *(start, 9690, newline, 6077, 5453, 30, end, newline),  # system: Be brief.
        *(start, 4093, newline, 1780, 314, 216, 34, 27, 34, 47, end, newline),  # user: What is 2+2?
        *(start, 520, 9531, newline, 1589, 314, 216, 36, 30, end),  # assistant: It is 4.
        *(newline, start, 4093, newline, 18757, 28, 284, 1890, 30, end),  # user: Right, and short.
    ]
    assert (line.response_start, line.reward_at, line.critique) == (24, 29, range(34, 40))
    assert list(line.ids[:24]) == chat.prompt_ids(ASKED)
    assert (chat.end_id, chat.tokenizer.eos_token_id, chat.tokenizer.pad_token_id) == (end, end, 0)
    messages = [{"role": m.role, "content": m.content} for m in (*ASKED, Message("assistant", "It is 4."))]
    theirs = chat.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert theirs == [*line.ids[: line.reward_at + 1], newline]  # the white space behind the turn is cut


def test_sharing_is_exact(model: RewardModel, chat: ChatFormat, pairs: list[Comparison]) -> None:
    assert model.backbone.can_share
    groups = [chat.encode(c.prompt, [c.chosen, c.rejected]).lines for c in pairs]
    lines = [line for chosen, rejected in groups for line in (*chosen, *rejected)]
    rows = [model.backbone.rows([line.ids for part in group for line in part])[0] for group in groups]
    assert sum(map(len, rows)) < sum(len(line.ids) for line in lines)  # prompts stand there once
    with torch.inference_mode():
        shared = model(collate(rows, 0), lines, with_critiques=False).rewards
    assert shared.std() > 0.01
    for side in ("right", "left"):
        alike(shared, padded_rewards(model, lines, side))


def test_one_step_changes_the_adapter_and_the_head_and_nothing_else(stepped: Stepped) -> None:
    assert "head.weight" in stepped.trainable
    assert all("lora_" in name or name == "head.weight" for name in stepped.trainable)
    assert len(stepped.trainable) == 30 * 7 * 2 + 1  # two factors on seven layers of each of 30 blocks, and the head
    for name, parameter in stepped.model.named_parameters():
        assert torch.equal(parameter, stepped.before[name]) != (name in stepped.trainable), name


def test_other_libraries_read_the_same_rewards(
    saved: Path,
    stepped: Stepped,
    chat: ChatFormat,
    pairs: list[Comparison],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`rrm-lm score`, PEFT, transformers with its defaults, and TRL's own function on the merged checkpoint."""
    from trl.experimental.utils import get_reward

    lines = lines_of(chat, pairs)
    rewards = padded_rewards(stepped.model, lines, "right")
    data = tmp_path / "responses.jsonl"
    rows = [
        {"prompt": c.prompt[-1].content, "completion": response} for c in pairs for response in (c.chosen, c.rejected)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert main(["score", "--model", str(saved), "--dataset", str(data), "--dtype", "float32"]) == 0
    scored = {row["response"]: row["reward"] for row in map(json.loads, capsys.readouterr().out.splitlines())}
    alike([scored[row["completion"]] for row in rows], rewards)

    # The embedded model is not on the Hub, so the adapter names it, and the card says how to load it.
    peft: Any = load_classifier(saved, 0)
    plain: Any = AutoModelForSequenceClassification.from_pretrained(str(saved / "merged")).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(str(saved / "merged"))
    assert plain.dtype == torch.float32 and plain.config.pad_token_id == tokenizer.pad_token_id == 0
    width = max(len(line.ids) for line in lines) + 1  # TRL looks for the first pad behind a response
    ids = torch.tensor([[*line.ids, *[0] * (width - len(line.ids))] for line in lines])
    with torch.inference_mode():
        alike(peft(input_ids=ids, attention_mask=ids != 0).logits[:, 0], rewards)
        alike(plain(input_ids=ids, attention_mask=ids != 0).logits[:, 0], rewards)
        alike(get_reward(plain, ids, 0, min(line.response_start for line in lines))[1], rewards)
    # As the model card says it, from messages.
    messages = [{"role": "user", "content": rows[0]["prompt"]}, {"role": "assistant", "content": rows[0]["completion"]}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    with torch.inference_mode():
        one = plain(**tokenizer(text, return_tensors="pt")).logits[0]
    alike(one, rewards[:1])
