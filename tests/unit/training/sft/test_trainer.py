"""Imitation: which tokens are learned, that TRL learns exactly those, and that nothing else changes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BloomConfig

from rrm_lm.errors import ConfigError, TrainingError
from rrm_lm.feedback.reading.datasets import Feedback
from rrm_lm.feedback.records import Correction, Demonstration
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.saving.adapters import read_weights
from rrm_lm.models.saving.policies import POLICY, Policy, PolicySettings, load_policy
from rrm_lm.settings.parsing.parser import parse, write_resolved
from rrm_lm.storage import verify
from rrm_lm.text.chat import ChatFormat, Line
from rrm_lm.training.reward.examples import FitCounts
from rrm_lm.training.sft import config as sft_config
from rrm_lm.training.sft.config import SFTConfig
from rrm_lm.training.sft.trainer import (
    Imitation,
    SFTTrainer,
    imitations,
    in_rows,
    response_nll,
    rows_to_dataset,
    to_imitate,
)
from tests.precision import Precision
from tests.tiny import (
    CHATML,
    comparison,
    lora,
    merging_tokenizer,
    origin,
    prompt_of,
    save_tiny_model,
    some_comparisons,
    tiny_chat,
    tiny_model,
)

torch.set_num_threads(1)

CHAT = tiny_chat()
# The last answer has no end-of-turn token behind it, as in templates that are made for the next one to be written.
OPEN_ENDED = CHATML.replace(
    "'<|im_end|>' + '\n'", "('' if loop.last and message['role'] == 'assistant' else '<|im_end|>\n')"
)


def demonstration(prompt: str, response: str, row: int = 1) -> Demonstration:
    return Demonstration(prompt=prompt_of(prompt), response=response, origin=origin(row))


def some_imitations(count: int = 12, chat: ChatFormat = CHAT) -> list[Imitation]:
    feedback = Feedback.of(some_comparisons(count, critiques=False))
    return imitations(chat, to_imitate(feedback, ["chosen"]), FitCounts())


def tiny_policy(dropout: float = 0.0, model: Any = None, name: str = "") -> Policy:
    torch.manual_seed(3)
    model = model if model is not None else tiny_model()
    model.name_or_path = name
    backbone = Backbone(model, pad_id=0)
    backbone.add_adapter(POLICY, lora(dropout=dropout, random=False))
    return Policy(backbone, tiny_chat(), POLICY)


def config(folder: Path, **more: Any) -> SFTConfig:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "warmup_steps": 0,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return SFTConfig(**{**settings, **more})


def trained(args: SFTConfig, policy: Policy | None = None, resume: Any = None, **more: Any) -> SFTTrainer:
    policy = policy if policy is not None else tiny_policy()
    settings = PolicySettings("tiny")
    trainer = SFTTrainer(policy, args, more.pop("train", some_imitations()), settings=settings, **more)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def state(policy: Policy) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.backbone.named_parameters()}


def shown(imitation: Imitation, chat: ChatFormat = CHAT) -> tuple[str, str]:
    """What is not learned and what is."""
    ids, start = list(imitation.line.ids), imitation.line.response_start
    return chat.tokenizer.decode(ids[:start]), chat.tokenizer.decode(ids[start:])


# -- what is imitated -----------------------------------------------------------------------------------------------


def test_which_responses() -> None:
    shows = demonstration("who?", "the sea")
    corrects = Correction(prompt=prompt_of("what?"), response="no", corrected="the moon", origin=origin(2))
    prefers = comparison("why?", "because", "sorry", row=3)
    twice = comparison("who?", "the sea", "no idea", row=4)
    feedback = Feedback.of([twice, shows, corrects, prefers])

    def texts(*sources: str) -> list[tuple[str, str, int]]:
        return [(r.prompt[-1].content, r.response, r.origin.row) for r in to_imitate(feedback, sources)]

    assert texts("demonstrations") == [("who?", "the sea", 1)]
    assert texts("corrections") == [("what?", "the moon", 2)]
    assert texts("chosen") == [("who?", "the sea", 4), ("why?", "because", 3)]
    everything = texts("demonstrations", "corrections", "chosen")
    assert everything == [("who?", "the sea", 1), ("what?", "the moon", 2), ("why?", "because", 3)]


def test_the_response_and_its_end_are_learned_and_nothing_else() -> None:
    prompt = prompt_of("who lives in the sea?", "what sea", "the blue sea", system="be short")
    record = Demonstration(prompt=prompt, response="the moon", origin=origin(7))
    [found] = imitations(CHAT, [record], FitCounts())
    before, learned = shown(found)
    assert learned == "the moon<|im_end|>" and before.endswith("<|im_start|>assistant\n") and "what sea" in before
    labels, start = found.labels(), found.line.response_start
    assert len(labels) == len(found.line.ids) and labels[:start] == [-100] * start
    assert labels[start:] == list(found.line.ids[start:]) and found.learned == len(labels) - start
    assert found.origin == "tiny.jsonl, row 7"


def test_special_tokens_in_what_people_wrote_stay_text() -> None:
    [found] = imitations(CHAT, [demonstration("<|im_end|> who?", "no<|im_end|>\n<|im_start|>user")], FitCounts())
    special = [token for token in found.line.ids if token in (1, 2)]
    assert special == [1, 2, 1, 2]  # the template's own: two turns, each with its beginning and its end
    assert shown(found)[1] == "no<|im_end|>\n<|im_start|>user<|im_end|>"
    assert found.labels()[-1] == 2 and found.labels().count(2) == 1


def test_an_end_that_the_template_leaves_out_is_learned_all_the_same() -> None:
    chat = tiny_chat(template=OPEN_ENDED)
    assert shown(imitations(chat, [demonstration("who?", "the sea")], FitCounts())[0], chat)[1] == "the sea<|im_end|>"
    length = len(imitations(chat, [demonstration("who?", "the sea")], FitCounts())[0].line.ids)
    short = tiny_chat(max_length=length - 1, template=OPEN_ENDED)
    [cut] = imitations(short, [demonstration("who?", "the sea")], FitCounts())
    assert len(cut.line.ids) == length - 1 and shown(cut, short)[1] == "the sea<|im_end|>"


def test_a_first_word_that_swallows_the_end_of_the_prompt() -> None:
    chat = ChatFormat(merging_tokenizer())
    [found] = imitations(chat, [demonstration("who?", "yes")], FitCounts())
    assert shown(found, chat)[1] == " yes<|im_end|>"


def test_prompts_that_are_too_long_lose_their_oldest_turns() -> None:
    prompt = prompt_of("the sea " * 8, "the moon " * 8, "who is blue?")
    record = Demonstration(prompt=prompt, response="the sea", origin=origin())
    counts = FitCounts()
    [found] = imitations(tiny_chat(max_length=24), [record], counts)
    assert shown(found) == ("<|im_start|>user\nwho is blue?<|im_end|>\n<|im_start|>assistant\n", "the sea<|im_end|>")
    assert (counts.shortened, counts.dropped_turns, counts.cut_tokens) == (1, 2, 0)


def test_responses_that_leave_no_room_for_their_prompt_are_left_out() -> None:
    """Their end alone, without a beginning or a question, is nothing to imitate."""
    long = demonstration("who?", "the moon and the sea " * 6, 5)
    length = len(imitations(CHAT, [long], FitCounts())[0].line.ids)
    start = imitations(CHAT, [long], FitCounts())[0].line.response_start
    for room, left in ((length - start + 1, 1), (length - start, 0), (length - start - 4, 0)):
        counts = FitCounts()
        found = imitations(tiny_chat(max_length=room), [long, demonstration("who?", "no", 6)], counts)
        assert len(found) == left + 1
        assert all(imitation.line.response_start > 0 for imitation in found)
        told = "; ".join(counts.left_out())
        assert told == (
            "" if left else f"left out, the response leaves no room for its prompt in {room} tokens: 1 (row 5)"
        )


# -- learning -------------------------------------------------------------------------------------------------------


def test_two_steps_change_the_adapter_and_nothing_else(tmp_path: Path, precision: Precision) -> None:
    policy = tiny_policy()
    before = state(policy)
    trainer = trained(config(tmp_path), policy)
    after = state(policy)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "lora_" in name} and len(changed) == 2 * 14
    log = trainer.state.log_history
    assert {"loss", "entropy", "mean_token_accuracy"} <= log[0].keys()  # TRL's own
    assert not list(tmp_path.iterdir())  # TRL's model card would be here


@pytest.mark.parametrize("loss_type", ["chunked_nll", "nll"])
def test_the_loss_is_the_mean_over_learned_tokens(loss_type: str, tmp_path: Path, precision: Precision) -> None:
    """TRL's number for a batch of uneven rows, against each row by itself and by the model's own logits."""
    policy, examples = tiny_policy(), some_imitations(8)
    expected: list[float] = []
    with torch.no_grad():
        for example in examples:
            ids = torch.tensor([example.line.ids])
            log_probs = policy.backbone.eval().causal_lm(input_ids=ids).logits[0].float().log_softmax(-1)
            places = range(example.line.response_start, len(example.line.ids))
            expected += [-float(log_probs[at - 1, ids[0, at]]) for at in places]
    nll = torch.cat(response_nll(policy.backbone, POLICY, [example.line for example in examples], 60))
    precision.close(nll, expected)
    args = config(tmp_path, per_device_train_batch_size=8, max_steps=1, loss_type=loss_type)
    logged = trained(args, policy, train=examples).state.log_history[0]["loss"]
    precision.close([logged], [sum(expected) / len(expected)], exact=1e-4)


def test_rows_of_one_step_in_parts(tmp_path: Path, precision: Precision) -> None:
    """Gradient accumulation changes nothing but rounding."""
    plain = {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    states = []
    for size, parts in ((4, 1), (2, 2)):
        policy = tiny_policy()
        args = config(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=parts, **plain)
        trained(args, policy, train=some_imitations(8))
        states.append(state(policy))
    precision.same_change(states[0], states[1], state(tiny_policy()), 1e-5)


@pytest.mark.parametrize(
    "more",
    [
        {"activation_checkpointing": True},
        {"label_smoothing_factor": 0.1},
        {"train_sampling_strategy": "group_by_length"},
        {"neftune_noise_alpha": 5.0},
        {"bf16": True},
        {"loss_type": "dft"},
        {"pad_to_multiple_of": 8},
    ],
    ids=lambda more: next(iter(more)),
)
def test_settings_of_hugging_face_and_trl(more: dict[str, Any], tmp_path: Path) -> None:
    policy = tiny_policy()
    before = state(policy)
    log = trained(config(tmp_path, **more), policy).state.log_history
    assert math.isfinite(log[0]["loss"])
    assert all(torch.equal(value, before[name]) != ("lora_" in name) for name, value in state(policy).items())


TEXT = "the moon is made of the sea and the story is short "
ASKED = ["who lives in the sea?", "what is the moon made of?", "is the story short?", "who lives in the moon?"]


def about_a_text() -> list[Imitation]:
    """Four questions on one text, two answers to one of them, and a prompt of its own."""
    shown = [demonstration(TEXT + question, f"answer {'sea ' * n}", n) for n, question in enumerate(ASKED, 1)]
    shown += [demonstration(TEXT + ASKED[0], "no", 5), demonstration("who?", "the moon", 6)]
    return imitations(CHAT, shown, FitCounts())


@pytest.mark.parametrize(
    ("family", "attention", "recompute"),
    [("llama", "sdpa", False), ("llama", "sdpa", True), ("gemma3", "sdpa", False), ("gpt2", "eager", False)],
)
def test_prompts_that_begin_alike_share_a_row(
    family: str, attention: str, recompute: bool, tmp_path: Path, precision: Precision
) -> None:
    """Two steps of gradient descent on all responses: as if each had a row of its own, with fewer tokens."""
    plain = {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    states, tokens, losses = [], [], []
    for together in (1, 4):
        policy = tiny_policy(model=tiny_model(family, attention=attention))
        more = {"prompts_together": together, "activation_checkpointing": recompute, **plain}
        made = trained(config(tmp_path, per_device_train_batch_size=6, **more), policy, train=about_a_text())
        states.append(state(policy))
        losses.append([entry["loss"] for entry in made.state.log_history if "loss" in entry])
        tokens.append([entry["num_tokens"] for entry in made.state.log_history if "loss" in entry])
    begun = state(tiny_policy(model=tiny_model(family, attention=attention)))
    precision.same_change(states[0], states[1], begun, 1e-5)
    precision.close(losses[1], losses[0], exact=1e-4)
    assert tokens[1][0] < 0.75 * tokens[0][0]


@pytest.mark.parametrize("response", [(60, 2), (41, 61, 2)])
def test_a_prompt_that_begins_as_another_conversation_has_a_row_of_its_own(response: tuple[int, ...]) -> None:
    ids = about_a_text()[0].prompt_ids
    first = Imitation(Line((*ids, 40, 41, 2), len(ids), len(ids) + 2), "", "")
    second = Imitation(Line((*ids, 40, *response), len(ids) + 1, len(ids) + len(response)), "", "")
    rows = in_rows([first, second], 4, tiny_policy().backbone)
    assert rows is not None and [len(group) for _, group in rows] == [1, 1]


def test_a_prompt_that_goes_on_another_is_learned_behind_it() -> None:
    ids = about_a_text()[0].prompt_ids
    short = Imitation(Line((*ids, 40, 41, 2), len(ids), len(ids) + 2), "", "")
    longer = Imitation(Line((*ids, 50, 51, 60, 2), len(ids) + 2, len(ids) + 3), "", "")
    rows = in_rows([longer, short], 4, tiny_policy().backbone)
    assert rows is not None and len(rows) == 1
    (labels,) = rows_to_dataset(rows)["labels"]
    assert [(at - len(ids), label) for at, label in enumerate(labels) if label != -100] == [
        (0, 40), (1, 41), (2, 2), (5, 60), (6, 2),
    ]  # fmt: skip


def test_rows_of_responses_that_cannot_share() -> None:
    backbone = tiny_policy().backbone
    rows = in_rows(about_a_text(), 4, backbone)
    assert rows is not None and in_rows(about_a_text(), 1, backbone) is None
    # Two answers to one prompt are predicted from one token, so they have two rows.
    assert [len(group) for _, group in rows] == [4, 1, 1]
    for row, group in rows:
        assert [tuple(row.ids[at] for at in where) for where in row.where] == [one.line.ids for one in group]
    backbone.can_share = False
    assert in_rows(about_a_text(), 4, backbone) is None


def test_recomputed_activations_change_nothing(tmp_path: Path, precision: Precision) -> None:
    states = []
    for recompute in (False, True):
        policy = tiny_policy()
        trained(config(tmp_path, activation_checkpointing=recompute), policy)
        states.append(state(policy))
    precision.same_change(states[0], states[1], state(tiny_policy()), 1e-6)


def test_a_loss_that_is_no_number_stops_before_the_step(tmp_path: Path) -> None:
    policy = tiny_policy()
    with torch.no_grad():
        next(p for name, p in policy.backbone.named_parameters() if "lora_B" in name).fill_(math.inf)
    before = state(policy)
    with pytest.raises(
        TrainingError, match=r"The loss is nan.*step 1, responses from tiny\.jsonl, row \d+, tiny\.jsonl"
    ):
        trained(config(tmp_path), policy)
    assert all(torch.equal(value, before[name]) for name, value in state(policy).items())


def test_held_out_loss_during_training_and_the_best_checkpoint(tmp_path: Path) -> None:
    """The last step is not the best one at this learning rate: the adapter of another one is what is left."""
    policy = tiny_policy()
    args = config(
        tmp_path, max_steps=3, learning_rate=1.0, lr_scheduler_type="constant", eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1, load_best_model_at_end=True, metric_for_best_model="eval_loss",
        greater_is_better=False,
    )  # fmt: skip
    trainer = trained(args, policy, heldout=some_imitations(16)[12:])
    losses = {log["step"]: log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log}
    best = min(losses, key=lambda step: losses[step])
    assert len(losses) == 3 and trainer.state.best_global_step == best < 3
    fresh = tiny_policy()
    read_weights(fresh.backbone, POLICY, tmp_path / f"checkpoint-{best}")
    assert all(torch.equal(value, state(policy)[name]) for name, value in state(fresh).items())


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_run_that_goes_on_is_the_run_that_was_not_stopped(dropout: float, tmp_path: Path) -> None:
    steps = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = tiny_policy(dropout)
    trained(config(tmp_path / "whole", **steps), whole)
    assert verify(tmp_path / "whole" / "checkpoint-2") == []
    assert not (tmp_path / "whole" / "checkpoint-2" / "training_args.bin").exists()  # a pickle
    (tmp_path / "whole" / "checkpoint-4" / "adapter_model.safetensors").unlink()  # the newest is broken
    rest = tiny_policy(dropout)
    trained(config(tmp_path / "whole", **steps), rest, resume=True)
    assert all(torch.equal(value, state(whole)[name]) for name, value in state(rest).items())


def test_a_checkpoint_is_a_policy_folder(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    policy = load_policy(base)
    policy.backbone.add_adapter(POLICY, lora(random=False))
    policy = Policy(policy.backbone, policy.chat, POLICY)
    settings = PolicySettings(str(base), max_length=64, method="sft")
    args = config(tmp_path / "run", save_strategy="steps", save_steps=2)
    SFTTrainer(policy, args, some_imitations(), settings=settings).train()
    fresh = load_policy(tmp_path / "run" / "checkpoint-2")
    lines = [example.line for example in some_imitations(3)]
    policy.backbone.eval()
    for mine, theirs in zip(
        response_nll(policy.backbone, POLICY, lines), response_nll(fresh.backbone, POLICY, lines), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert fresh.chat.max_length == 64


# -- held-out loss --------------------------------------------------------------------------------------------------


def test_the_held_out_loss_does_not_depend_on_the_batches(precision: Precision) -> None:
    backbone = Backbone(tiny_model("gpt2"), pad_id=0)
    lines = [example.line for example in some_imitations(9)]
    alone = [response_nll(backbone, None, [line])[0] for line in lines]
    assert [len(nll) for nll in alone] == [len(line.ids) - line.response_start for line in lines]
    for budget in (1, 100, 10_000):
        together = response_nll(backbone, None, lines, budget)
        precision.close(torch.cat(together), torch.cat(alone))


def test_a_family_that_cannot_take_masks() -> None:
    model = tiny_model(
        config=BloomConfig(vocab_size=416, hidden_size=32, n_layer=2, n_head=4, pad_token_id=0), attention="eager"
    )
    line = Line((5, 6, 7, 8, 2), 3, 4)
    [nll] = response_nll(Backbone(model, pad_id=0), None, [line])
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor([line.ids])).logits[0].log_softmax(-1)
    assert nll.tolist() == pytest.approx([-float(log_probs[2, 8]), -float(log_probs[3, 2])], abs=1e-4)


# -- settings -------------------------------------------------------------------------------------------------------


def test_defaults_suit_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TRL's are bfloat16 and recomputed activations everywhere, which is slower on CPUs."""
    args = SFTConfig(output_dir=str(tmp_path))
    monkeypatch.setattr(sft_config, "default_device", lambda: torch.device("cpu"))
    args = SFTConfig(output_dir=str(tmp_path))
    assert (args.bf16, args.activation_checkpointing, args.gradient_checkpointing) == (False, False, False)
    assert args.loss_type == "chunked_nll"
    chosen = SFTConfig(output_dir=str(tmp_path), bf16=True, gradient_checkpointing=True, use_cpu=True)
    assert (chosen.bf16, chosen.activation_checkpointing) == (True, True)
    monkeypatch.setattr(sft_config, "default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(sft_config, "default_dtype", lambda: torch.bfloat16)
    monkeypatch.setattr(SFTConfig.__mro__[2], "__post_init__", lambda self: None)  # it would look for the GPU
    gpu = SFTConfig(output_dir=str(tmp_path), report_to=[])
    assert (gpu.bf16, gpu.activation_checkpointing) == (True, True)
    assert not SFTConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[]).bf16


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (("--sft_on", "critiques"), "sft_on"),
        (("--packing", "true"), "packing"),
        (("--padding_free", "true"), "padding_free"),
        (("--assistant_only_loss", "true"), "assistant_only_loss"),
        (("--completion_only_loss", "false"), "completion_only_loss"),
        (("--use_liger_kernel", "true"), "use_liger_kernel"),
        (("--max_length", "0"), "max_length"),
        (("--label_smoothing_factor", "0.5"), "label_smoothing_factor"),
        (("--seed", "-1"), "seed"),
    ],
)
def test_settings_that_make_no_sense(words: tuple[str, ...], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse([SFTConfig], words, command="rrm-lm sft")
    assert caught.value.where == where and caught.value.expected


@pytest.mark.parametrize("name", ["eos_token", "dataset_text_field", "truncation_mode", "model_init_kwargs"])
def test_settings_that_would_make_tokens_elsewhere_are_unknown(name: str) -> None:
    with pytest.raises(ConfigError, match="There is no flag"):
        parse([SFTConfig], (f"--{name}", "x"), command="rrm-lm sft")


def test_settings_survive_being_written(tmp_path: Path) -> None:
    (args,) = parse([SFTConfig], ("--sft_on", "chosen", "corrections", "--use_cpu", "true"), command="rrm-lm sft")
    write_resolved(tmp_path / "config.yaml", args)
    (again,) = parse([SFTConfig], ("--config", str(tmp_path / "config.yaml")), command="rrm-lm sft")
    assert again.sft_on == ["chosen", "corrections"]
    assert again.to_dict() == args.to_dict()
