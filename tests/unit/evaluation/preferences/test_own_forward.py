"""Reward models of other programs are read where their maker's class reads them.

The kinds come from public reports: huggingface/trl#2758 and #5813, RLHFlow/RLHF-Reward-Modeling#49,
huggingface/transformers#35352 (the pad token is the eos token, and the template ends with it).
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import rrm_lm
from rrm_lm.errors import ModelError
from rrm_lm.evaluation.preferences import own_forward
from rrm_lm.evaluation.preferences.judge import JudgeScorer
from rrm_lm.evaluation.preferences.scorers import ClassifierScorer, RewardScorer, load_scorer
from tests.tiny import CHATML, prompt_of, save_tiny_model, tiny_tokenizer

ENDING_IN_EOS = CHATML.replace("'<|im_end|>' + '\n'", "'<|im_end|>'")
PROMPTS = [prompt_of("what is the moon?"), prompt_of("who?", "the sea", "why?"), prompt_of("hi")]
RESPONSES = [["no"], ["the answer is yes because the sea is blue"], ["good <|im_end|>"]]
PAD, EOS = 0, 2


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def tokenizer(template: str, pad: int) -> Any:
    made = tiny_tokenizer(template)
    made.pad_token = made.convert_ids_to_tokens(pad)
    return made


def classifier(folder: Path, template: str = CHATML, *, pad: int | None = PAD, **config: Any) -> Path:
    """A sequence classifier as another program saves it: its pad token is in its configuration."""
    save_tiny_model(folder, tokenizer=tokenizer(template, EOS if pad == EOS else PAD))
    options: dict[str, Any] = {"num_labels": 1, "pad_token_id": pad, **config}
    model: Any = AutoModelForSequenceClassification.from_pretrained(str(folder), **options)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(str(folder))
    return folder


def adapter(folder: Path, task: str, template: str = CHATML, *, base_pad: int | None = PAD, pad: int = PAD) -> Path:
    """A PEFT adapter as another program saves it, without files of this package."""
    base = folder.with_name(f"{folder.name}-base")
    save_tiny_model(base, tokenizer=tokenizer(template, pad))
    config = json.loads((base / "config.json").read_text()) | {"pad_token_id": base_pad}
    (base / "config.json").write_text(json.dumps(config))
    auto: Any = AutoModelForSequenceClassification if task == "SEQ_CLS" else AutoModelForCausalLM
    plain = auto.from_pretrained(str(base), **({"num_labels": 1} if task == "SEQ_CLS" else {}))
    torch.manual_seed(2)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type=TaskType[task], init_lora_weights=False)
    peft = get_peft_model(plain, lora)
    for name, parameter in peft.named_parameters():
        if "score" in name:
            torch.nn.init.normal_(parameter)
    peft.save_pretrained(str(folder))
    tokenizer(template, pad).save_pretrained(str(folder))
    return folder


def rendered(template: str, prompt: Any, response: str) -> torch.Tensor:
    """(1, time) token ids as a client makes them, with special tokens in the response as text."""
    made = tiny_tokenizer(template)
    turns = [{"role": m.role, "content": m.content} for m in prompt] + [{"role": "assistant", "content": "\ue005"}]
    before, after = made.apply_chat_template(turns, tokenize=False).split("\ue005")
    ids = made(before, add_special_tokens=False).input_ids
    ids += made(response, add_special_tokens=False, split_special_tokens=True).input_ids
    return torch.tensor([ids + made(after, add_special_tokens=False).input_ids])


@torch.no_grad()
def by_its_maker(model: Any, template: str) -> list[float]:
    pairs = zip(PROMPTS, RESPONSES, strict=True)
    return [model.eval()(rendered(template, prompt, response)).logits.item() for prompt, (response,) in pairs]


def scored(folder: Path, kind: type, **options: Any) -> list[float]:
    scorer = load_scorer(str(folder), dtype="float32", **options)
    assert isinstance(scorer, kind)
    return [reward for (reward,) in scorer.score(PROMPTS, RESPONSES)]


@pytest.mark.parametrize("pad", [PAD, EOS, None])
@pytest.mark.parametrize("template", [CHATML, ENDING_IN_EOS])
def test_a_classifier_is_read_as_its_class_reads_it(template: str, pad: int | None, tmp_path: Path) -> None:
    folder = classifier(tmp_path / "model", template, pad=pad)
    model = AutoModelForSequenceClassification.from_pretrained(str(folder))
    expected = by_its_maker(model, template)
    assert scored(folder, ClassifierScorer) == pytest.approx(expected, abs=1e-4)
    at_the_end = [float(v) for v in every_token(model, template)]
    assert (expected != pytest.approx(at_the_end, abs=1e-3)) == (pad == EOS and template == ENDING_IN_EOS)


@torch.no_grad()
def every_token(model: Any, template: str) -> list[float]:
    """The reward at the last token of each conversation, whatever it is."""
    model.config.pad_token_id = None
    return by_its_maker(model, template)


@pytest.mark.parametrize("base_pad", [PAD, EOS])
@pytest.mark.parametrize("template", [CHATML, ENDING_IN_EOS])
def test_an_adapter_is_read_at_the_token_of_the_merged_model(template: str, base_pad: int, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "lora", "SEQ_CLS", template, base_pad=base_pad, pad=base_pad)
    own: Any = AutoPeftModelForSequenceClassification.from_pretrained(str(folder), num_labels=1)
    expected = by_its_maker(own, template)
    assert scored(folder, RewardScorer) == pytest.approx(expected, abs=1e-4)
    merged = tmp_path / "merged"
    own.merge_and_unload().save_pretrained(str(merged))
    tokenizer(template, base_pad).save_pretrained(str(merged))
    assert scored(merged, ClassifierScorer) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("template", [CHATML, ENDING_IN_EOS])
def test_a_saved_copy_of_an_adapter_gives_the_same_rewards(template: str, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "lora", "SEQ_CLS", template)
    rrm_lm.RewardModel.from_pretrained(folder, dtype="float32").save_pretrained(tmp_path / "copy")
    assert scored(tmp_path / "copy", RewardScorer) == scored(folder, RewardScorer)
    own: Any = AutoPeftModelForSequenceClassification.from_pretrained(str(tmp_path / "copy"), num_labels=1)
    assert by_its_maker(own, template) == pytest.approx(scored(folder, RewardScorer), abs=1e-4)


def test_without_a_pad_in_the_configuration_the_tokenizers_pad_ends_rows(tmp_path: Path) -> None:
    """TRL trains with the tokenizer's pad token, and the adapter does not record it in the model's configuration."""
    folder = adapter(tmp_path / "lora", "SEQ_CLS", ENDING_IN_EOS, base_pad=None, pad=EOS)
    own: Any = AutoPeftModelForSequenceClassification.from_pretrained(str(folder), num_labels=1, pad_token_id=EOS)
    assert scored(folder, RewardScorer) == pytest.approx(by_its_maker(own, ENDING_IN_EOS), abs=1e-4)


def test_an_adapter_that_is_read_at_another_token_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = adapter(tmp_path / "lora", "SEQ_CLS")
    found = own_forward._as_classifier

    def reads_elsewhere(*args: Any) -> Any:
        model = found(*args)
        model.register_forward_hook(lambda _module, _inputs, output: setattr(output, "logits", output.logits + 1))
        return model

    monkeypatch.setattr(own_forward, "_as_classifier", reads_elsewhere)
    with pytest.raises(ModelError, match="differ from those of the model's own forward pass"):
        load_scorer(str(folder), dtype="float32")


def test_a_class_that_misreads_padded_rows_scores_rows_of_equal_length(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "model")
    scorer: Any = load_scorer(str(folder), dtype="float32")
    expected = by_its_maker(scorer.model, CHATML)
    scorer.model.config.pad_token_id = -1  # reads the last token of the row, padding or not
    assert [reward for (reward,) in scorer.score(PROMPTS, RESPONSES)] != pytest.approx(expected, abs=1e-3)
    own_forward.check_forward(scorer)
    assert not scorer.padded
    assert [reward for (reward,) in scorer.score(PROMPTS, RESPONSES)] == pytest.approx(expected, abs=1e-4)


def test_a_head_with_a_sigmoid_is_named_and_several_outputs_are_refused(tmp_path: Path, caplog: Any) -> None:
    one = classifier(tmp_path / "one", problem_type="multi_label_classification")
    with caplog.at_level(logging.INFO):
        scored(one, ClassifierScorer)
    assert "problem_type multi_label_classification: the reward is its logit, without a sigmoid" in caplog.text
    names = dict(enumerate(["helpfulness", "correctness", "verbosity"]))
    many = classifier(tmp_path / "many", num_labels=3, id2label=names, problem_type="regression")
    with pytest.raises(
        ModelError, match=r"3 outputs \(helpfulness, correctness, verbosity ...\); its problem_type is reg"
    ):
        load_scorer(str(many), dtype="float32")


@pytest.mark.parametrize(
    "name",
    [
        "LlamaForRewardModelWithGating",
        "INFORMForSequenceClassification",
        "InternLM2ForRewardModel",
        "LlamaModelForScore",
    ],
)
def test_reward_models_with_heads_of_their_own_are_refused_by_name(name: str, tmp_path: Path) -> None:
    """ArmoRM and QRM, INF-ORM, InternLM2-Reward, Beaver: transformers would make up a head of another shape."""
    folder = save_tiny_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {"architectures": [name]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=f"a reward model of the class {name}"):
        load_scorer(str(folder), dtype="float32")


def test_a_reward_model_whose_head_is_in_another_file_is_no_judge(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    (folder / "value_head.safetensors").touch()
    with pytest.raises(ModelError, match="head is in a file of its own"):
        load_scorer(str(folder), dtype="float32")


def test_an_adapted_language_model_judges_with_its_adapter(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "lora", "CAUSAL_LM")
    rewards = scored(folder, JudgeScorer)
    merged = tmp_path / "merged"
    peft: Any = load_merged(folder)
    peft.save_pretrained(str(merged))
    tiny_tokenizer().save_pretrained(str(merged))
    assert rewards == pytest.approx(scored(merged, JudgeScorer), abs=1e-4)
    assert rewards != pytest.approx(scored(tmp_path / "lora-base", JudgeScorer), abs=1e-2)


def load_merged(folder: Path) -> Any:
    from peft import AutoPeftModelForCausalLM

    model: Any = AutoPeftModelForCausalLM.from_pretrained(str(folder))
    return model.merge_and_unload()
