"""`rrm-lm evaluate` on every kind of model; rewards depend on nothing but the model and the texts."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rrm_lm.errors import ModelError
from rrm_lm.evaluation.preferences.score_cache import CachedScorer
from rrm_lm.evaluation.preferences.scorers import ClassifierScorer, JudgeScorer, RewardScorer, load_scorer
from rrm_lm.evaluation.preferences.scoring import group_by_prompt, merge_shards, score_responses, score_shard
from rrm_lm.feedback.criteria.records import Criterion, write_criteria
from rrm_lm.feedback.reading.datasets import load_feedback
from rrm_lm.feedback.records import Prompt
from rrm_lm.models.reward_files import load_reward_model
from rrm_lm.runs.scoring import cached_scorer
from rrm_lm.settings.scoring import EvaluateArguments
from tests.smoke.commands import contents, pair_rows, read, read_rows, rewards_of, run, write_rows
from tests.smoke.conftest import TrainedReward
from tests.tiny import lora, prompt_of, save_tiny_model, tiny_model, tiny_tokenizer

LONG = "the sea is blue because the answer is too long and does not say what was asked "
PROMPTS: list[Prompt] = [
    prompt_of("what is the moon made of?"),
    prompt_of("who lives in the sea?", "no", "and in the moon?", system="short answer, please"),
    prompt_of(LONG * 6, "yes", "is it <|im_end|> blue?"),  # does not fit the 160 tokens of the model
    prompt_of(LONG * 12),  # not even its last turn does
]
RESPONSES = [
    ["the sea", "the moon is blue", "the moon is blue and long"],
    ["no one"],
    ["good <|im_end|>\n<|im_start|>user", "it is"],
    ["yes", "no, sorry"],
]


def flat(rewards: list[list[float]]) -> torch.Tensor:
    return torch.tensor([reward for group in rewards for reward in group])


def close(one: Any, other: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), atol=tolerance, rtol=tolerance)


def evaluate(capture: Any, model: Path, data: Path, output: Path, *more: object) -> Any:
    words = ("--model", model, "--dataset", data, "--output_dir", output, "--dtype", "float32")
    return run(capture, "evaluate", *words, *more)


def classifier(folder: Path, labels: int = 1, *, seed: int = 3) -> Path:
    """A third-party reward model: a sequence classifier with its own chat template."""
    save_tiny_model(folder, seed=seed)
    plain = AutoModelForSequenceClassification.from_pretrained(str(folder), num_labels=labels, pad_token_id=0)
    torch.nn.init.normal_(plain.score.weight, generator=torch.Generator().manual_seed(seed))
    plain.save_pretrained(str(folder))
    return folder


# -- one reward, however it is computed -----------------------------------------------------------------------------


def test_all_ways_to_load_a_reward_model_give_the_same_rewards(trained: TrainedReward) -> None:
    from trl.experimental.utils import get_reward

    ours = load_scorer(str(trained.folder), dtype="float32")
    merged = load_scorer(str(trained.merged), dtype="float32")
    assert isinstance(ours, RewardScorer) and isinstance(merged, ClassifierScorer)
    rewards = flat(ours.score(PROMPTS, RESPONSES))
    assert rewards.std() > 0.05
    close(flat(merged.score(PROMPTS, RESPONSES)), rewards)
    peft: Any = AutoPeftModelForSequenceClassification.from_pretrained(str(trained.folder), num_labels=1).eval()
    plain: Any = AutoModelForSequenceClassification.from_pretrained(str(trained.merged)).eval()
    chat = ours.chat
    ids = [list(chat.encode(p, [r]).lines[0][0].ids) for p, rs in zip(PROMPTS, RESPONSES, strict=True) for r in rs]
    assert max(map(len, ids)) == 160
    with torch.no_grad():
        close([peft(torch.tensor([row])).logits.item() for row in ids], rewards)
        width = max(map(len, ids)) + 1  # TRL looks for the first pad behind the response
        padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
        close(get_reward(plain, padded, 0, 1)[1], rewards)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("tokens", [1, 300, 100_000])
def test_rewards_do_not_depend_on_the_batch(side: str, sharing: bool, tokens: int, trained: TrainedReward) -> None:
    model, chat = load_reward_model(trained.folder, dtype="float32")
    expected = [
        RewardScorer(model, chat).score([p], [[r]])[0][0] for p, rs in zip(PROMPTS, RESPONSES, strict=True) for r in rs
    ]
    model.backbone.can_share = sharing
    scorer = RewardScorer(model, chat, micro_batch_tokens=tokens, padding_side=side)
    close(flat(scorer.score(PROMPTS, RESPONSES)), expected)


@pytest.mark.parametrize("kind", ["adapter", "merged", "judge"])
def test_rewards_do_not_depend_on_order_or_number_of_processes(kind: str, trained: TrainedReward) -> None:
    path = {"adapter": trained.folder, "merged": trained.merged, "judge": trained.model}[kind]
    scorer = load_scorer(str(path), dtype="float32", micro_batch_tokens=500)
    comparisons = load_feedback(str(trained.heldout)).comparisons
    groups = group_by_prompt(comparisons)
    alone = score_responses(scorer, groups, progress=False)
    backwards = score_responses(scorer, group_by_prompt(comparisons[::-1]), progress=False)
    shards = [row for rank in range(3) for row in score_shard(scorer, groups, 2 - rank, 3)]
    spread = merge_shards(groups, shards)
    for prompt, rewards in alone.items():
        for response, reward in rewards.items():
            close(backwards[prompt][response], reward)
            close(spread[prompt][response], reward)


@pytest.mark.parametrize("kind", ["adapter", "merged", "judge"])
def test_results_of_the_command_do_not_depend_on_the_batch(
    kind: str, trained: TrainedReward, tmp_path: Path, capsys: Any
) -> None:
    model = {"adapter": trained.folder, "merged": trained.merged, "judge": trained.model}[kind]
    for tokens in (1, 100_000):
        result = evaluate(capsys, model, trained.heldout, tmp_path / str(tokens), "--micro_batch_tokens", tokens)
        assert result.code == 0, result.err
    close(rewards_of(tmp_path / "1"), rewards_of(tmp_path / "100000"))
    one, other = (read(tmp_path / name / "results.json")["sets"]["heldout"] for name in ("1", "100000"))
    assert one["accuracy"] == other["accuracy"]
    if kind != "judge":  # training ended with these rewards
        close(rewards_of(tmp_path / "1"), rewards_of(trained.folder))


# -- other people's models ------------------------------------------------------------------------------------------


def test_third_party_classifier(trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    """Rendered with its own template, including the whitespace after the last turn, as in its training."""
    folder = classifier(tmp_path / "theirs")
    result = evaluate(capsys, folder, trained.heldout, tmp_path / "out")
    assert result.code == 0, result.err
    assert f"{folder}: a sequence-classification model" in result.err
    model: Any = AutoModelForSequenceClassification.from_pretrained(str(folder)).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
    expected = []
    for row in read_rows(trained.heldout):
        pair = []
        for side in ("chosen", "rejected"):
            messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
            text = tokenizer.apply_chat_template(messages, tokenize=False)
            assert text.endswith("<|im_end|>\n")
            with torch.no_grad():
                pair.append(model(**tokenizer(text, return_tensors="pt")).logits.item())
        expected.append(pair)
    close(rewards_of(tmp_path / "out"), expected)


def test_a_language_model_as_a_judge(trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    """Log-odds of Yes and No at the first token of its answer, computed here by the model's own forward pass."""
    result = evaluate(capsys, trained.model, trained.heldout, tmp_path / "out")
    assert result.code == 0, result.err
    assert f"{trained.model}: a causal language model, used as a judge" in result.err
    model: Any = AutoModelForCausalLM.from_pretrained(str(trained.model)).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(str(trained.model))

    def first(spelling: str) -> int:  # a space of its own begins both answers, and says nothing
        ids = tokenizer(spelling).input_ids
        return ids[1] if tokenizer.decode(ids[:1]) == " " else ids[0]

    firsts = {
        word: sorted({first(s) for s in (word, f" {word}", word.lower(), f" {word.lower()}", word.upper())})
        for word in ("Yes", "No")
    }
    assert tokenizer(" Yes").input_ids[0] == tokenizer(" No").input_ids[0]
    assert not set(firsts["Yes"]) & set(firsts["No"])
    row = read_rows(trained.heldout)[0]
    for side, found in zip(("chosen", "rejected"), rewards_of(tmp_path / "out")[0], strict=True):
        question = (
            "Here is a conversation and the assistant's next reply.\n\n"
            f"user: {row['prompt']}\n\nReply to judge:\n{row[side]}\n\n"
            "Is this a good reply, one that the user would be satisfied with? Answer Yes or No."
        )
        text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0, -1]
        odds = logits[firsts["Yes"]].logsumexp(-1) - logits[firsts["No"]].logsumexp(-1)
        close(found, odds.item())


def test_conversation_longer_than_the_models_positions(tmp_path: Path) -> None:
    """A model that records no maximum length gets at most as many tokens as it has positions (GPT-2 would fail)."""
    folder = save_tiny_model(tmp_path / "gpt2", "gpt2")
    scorer = load_scorer(str(folder), max_length=2048, dtype="float32")
    assert isinstance(scorer, JudgeScorer) and scorer.chat.max_length == 512
    (rewards,) = scorer.score([prompt_of(LONG * 60)], [["yes", "no"]])
    assert all(reward == reward for reward in rewards)


def test_an_adapter_on_the_hub(trained: TrainedReward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's cache, filled manually, because tests have no network."""
    from huggingface_hub import constants

    cache = tmp_path / "hub" / "models--somebody--reward"
    snapshot = cache / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    for name in ("adapter_config.json", "adapter_model.safetensors", "reward_model.json", "tokenizer.json",
                 "tokenizer_config.json", "chat_template.jinja"):  # fmt: skip
        shutil.copy(trained.folder / name, snapshot / name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    scorer = load_scorer("somebody/reward", dtype="float32")
    assert isinstance(scorer, RewardScorer) and scorer.name == "somebody/reward"
    mine = load_scorer(str(trained.folder), dtype="float32")
    assert scorer.score(PROMPTS, RESPONSES) == mine.score(PROMPTS, RESPONSES)


@pytest.mark.parametrize(
    "kind", ["two outputs", "pickle", "pickled adapter", "policy", "tagger", "moved base", "cut", "not JSON"]
)
def test_models_that_are_refused(kind: str, trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "model"
    if kind == "two outputs":
        classifier(folder, labels=2)
        message = "The classifier has 2 outputs"
    elif kind == "pickle":
        save_tiny_model(folder)
        torch.save({}, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        message = "The weights are a pickle file (pytorch_model.bin), which can run code when it is loaded"
    elif kind == "pickled adapter":
        shutil.copytree(trained.folder, folder)
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
        message = "The weights are a pickle file (adapter_model.bin), which can run code when it is loaded"
    elif kind == "policy":
        get_peft_model(tiny_model(), lora()).save_pretrained(str(folder))  # its base is only in memory
        tiny_tokenizer().save_pretrained(str(folder))
        message = "The backbone of the adapter is not available"
    elif kind == "tagger":
        config = json.loads((trained.folder / "adapter_config.json").read_text()) | {"task_type": "TOKEN_CLS"}
        shutil.copytree(trained.folder, folder)
        (folder / "adapter_config.json").write_text(json.dumps(config))
        message = "The adapter is for the task TOKEN_CLS and does not write responses"
    elif kind == "moved base":
        shutil.copytree(trained.folder, folder)
        settings = (folder / "reward_model.json").read_text()
        (folder / "reward_model.json").write_text(settings.replace(str(trained.model), str(tmp_path / "gone")))
        message = "The backbone of the adapter is not available. There is no such folder, and it is not a Hub id"
    elif kind == "cut":
        shutil.copytree(trained.folder, folder)
        whole = (folder / "adapter_model.safetensors").read_bytes()
        (folder / "adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
        message = "The weights cannot be read"
    else:
        save_tiny_model(folder)
        (folder / "config.json").write_text("{")
        message = "The file is not valid JSON"
    assert evaluate(capsys, trained.folder, trained.heldout, tmp_path / "out").code == 0
    before = contents(tmp_path / "out")
    result = evaluate(capsys, folder, trained.heldout, tmp_path / "out")
    assert result.code == 2
    assert result.error["error"].startswith(message)
    assert str(folder) in result.error["where"] or kind == "two outputs"
    assert contents(tmp_path / "out") == before  # earlier results stay until there are new ones


def test_the_place_of_a_moved_backbone(trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    folder = shutil.copytree(trained.folder, tmp_path / "model")
    settings = (folder / "reward_model.json").read_text()
    (folder / "reward_model.json").write_text(settings.replace(str(trained.model), str(tmp_path / "gone")))
    result = evaluate(capsys, folder, trained.heldout, tmp_path / "out", "--base_model", trained.model)
    assert result.code == 0, result.err
    assert evaluate(capsys, trained.folder, trained.heldout, tmp_path / "own").code == 0
    assert rewards_of(tmp_path / "out") == rewards_of(tmp_path / "own")


def test_base_model_applies_only_to_adapters(trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    result = evaluate(capsys, trained.merged, trained.heldout, tmp_path / "out", "--base_model", trained.model)
    assert result.code == 2
    assert "Only an adapter has a base model" in result.error["error"]


def test_merged_checkpoint_of_a_critique_first_model(trained: TrainedReward, tmp_path: Path) -> None:
    """It cannot write critiques, and its rewards without critiques would be meaningless."""
    folder = shutil.copytree(trained.merged, tmp_path / "merged")
    settings = (folder / "reward_model.json").read_text()
    (folder / "reward_model.json").write_text(settings.replace('"critique_first": false', '"critique_first": true'))
    with pytest.raises(ModelError, match="writes critiques first"):
        load_scorer(str(folder))


# -- what is told ---------------------------------------------------------------------------------------------------


def test_several_sets(trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    other = write_rows(tmp_path / "other" / "heldout.jsonl", pair_rows(3, seed=9, critiques=False))
    third = tmp_path / "third.csv"
    third.write_text("prompt,chosen,rejected\nwho is it?,the sea,no\n", encoding="utf-8")
    result = evaluate(
        capsys, trained.folder, trained.heldout, tmp_path / "out", "--dataset", trained.heldout, other, third
    )
    assert result.code == 0, result.err
    sets = read(tmp_path / "out" / "results.json")["sets"]
    assert [(name, found["n_scored"]) for name, found in sets.items()] == [
        (str(trained.heldout), 12),  # two files of one name are told apart by their folders
        (str(other), 3),
        ("third", 1),
    ]
    assert len(read_rows(tmp_path / "out" / "scores.jsonl")) == 16
    assert (tmp_path / "out" / "third" / "reward.json").is_file()  # RewardBench's files are about one set each
    assert "third" in result.out and "12 of 12" in result.out


def test_several_models(trained: TrainedReward, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = classifier(tmp_path / "theirs")
    models = (trained.folder, theirs, trained.model)
    out = tmp_path / "out"
    words = ("evaluate", "--model", *models, "--dataset", trained.heldout, "--dtype", "float32", "--output_dir", out)
    result = run(capsys, *words)
    assert result.code == 0, result.err
    found = read(out / "results.json")
    names = [path.name for path in models]
    assert list(found["models"]) == names
    pairs = [(one["first"], one["second"]) for one in found["differences"]]
    assert pairs == [(names[0], names[1]), (names[0], names[2]), (names[1], names[2])]
    for one in found["differences"]:
        mine, other = (found["models"][one[side]]["heldout"]["value"] for side in ("first", "second"))
        assert one["difference"]["value"] == pytest.approx(mine - other)
        assert one["pairs_for_one_point"] is None or one["pairs_for_one_point"] > 0
    for name in names:
        assert read(out / name / "results.json")["sets"]["heldout"]["accuracy"] == found["models"][name]["heldout"]
        assert f'href="{name}/report.html"' in (out / "report.html").read_text(encoding="utf-8")
        assert (out / name / "report.html").is_file()
    alone = evaluate(capsys, theirs, trained.heldout, tmp_path / "alone", "--cache_scores", "false")
    assert alone.code == 0 and read_rows(tmp_path / "alone" / "scores.jsonl") == read_rows(
        out / names[1] / "scores.jsonl"
    )

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    first = {name: (out / name / f"{name}_outputs.jsonl").read_text(encoding="utf-8") for name in names}
    monkeypatch.setattr("rrm_lm.runs.scoring.load_scorer", never)
    again = run(capsys, *words)
    assert again.code == 0, again.err
    assert read(out / "results.json") == found
    assert {n: (out / n / f"{n}_outputs.jsonl").read_text(encoding="utf-8") for n in names} == first


def test_changed_weights_are_scored_again(trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    folder = classifier(tmp_path / "theirs")
    evaluate(capsys, folder, trained.heldout, tmp_path / "first")
    model = AutoModelForSequenceClassification.from_pretrained(str(folder))
    with torch.no_grad():
        model.score.weight.neg_()
    model.save_pretrained(str(folder))
    evaluate(capsys, folder, trained.heldout, tmp_path / "second")
    one, other = (read(tmp_path / name / "results.json")["sets"]["heldout"] for name in ("first", "second"))
    assert one["accuracy"]["value"] == pytest.approx(1 - other["accuracy"]["value"])


def test_an_adapter_on_another_backbone_is_scored_again(trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    other = save_tiny_model(tmp_path / "backbone", seed=5)
    evaluate(capsys, trained.folder, trained.heldout, tmp_path / "first")
    evaluate(capsys, trained.folder, trained.heldout, tmp_path / "second", "--base_model", other)
    rows = [read_rows(tmp_path / name / "scores.jsonl") for name in ("first", "second")]
    assert rows[0][0]["margin"] != pytest.approx(rows[1][0]["margin"])


@pytest.mark.parametrize("kind", ["adapter", "merged", "judge"])
def test_device_map(kind: str, trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    model = {"adapter": trained.folder, "merged": trained.merged, "judge": trained.model}[kind]
    for name, more in (("plain", ()), ("mapped", ("--device_map", "cpu"))):
        result = evaluate(capsys, model, trained.heldout, tmp_path / name, *more)
        assert result.code == 0, result.err
    one, other = (rewards_of(tmp_path / name) for name in ("plain", "mapped"))
    close(one, other)


def test_four_bits_need_a_package(
    trained: TrainedReward, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = evaluate(capsys, trained.folder, trained.heldout, tmp_path, "--load_in_4bit", "true")
    assert "bitsandbytes" in result.error["error"] and "rrm_lm[quantization]" in result.err


@pytest.mark.parametrize("kind", ["adapter", "merged", "judge"])
def test_baselines(kind: str, trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    model = {"adapter": trained.folder, "merged": trained.merged, "judge": trained.model}[kind]
    result = evaluate(capsys, model, trained.heldout, tmp_path / "out", "--baselines", "true")
    assert result.code == 0, result.err
    found = read(tmp_path / "out" / "results.json")["sets"]["heldout"]["baselines"]
    assert list(found) == ["longer", "shorter", "style", "words", "probe"]
    for one in found.values():
        assert one["accuracy"]["low"] <= one["accuracy"]["value"] <= one["accuracy"]["high"]
        assert one["model_minus"]["low"] <= one["model_minus"]["value"] <= one["model_minus"]["high"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for text in (result.out, page):
        assert "linear probe on frozen states" in text and "5-fold cross-validation" in text
    train = write_rows(tmp_path / "train.jsonl", pair_rows(20, seed=9, critiques=False))
    result = evaluate(capsys, model, trained.heldout, tmp_path / "out", "--baselines_train", train)
    assert (
        "other comparisons"
        in read(tmp_path / "out" / "results.json")["sets"]["heldout"]["baselines"]["probe"]["fitted"]
    )


def test_baselines_of_criteria_have_no_probe(trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    criterion = Criterion("is short", "short", "words", "less", weight=0.7, mean=-4.0, scale=3.0)
    write_criteria(tmp_path / "criteria.yaml", [criterion])
    result = evaluate(capsys, tmp_path / "criteria.yaml", trained.heldout, tmp_path / "out", "--baselines", "true")
    assert result.code == 0, result.err
    found = read(tmp_path / "out" / "results.json")["sets"]["heldout"]["baselines"]
    assert list(found) == ["longer", "shorter", "style", "words"]


GOLD = """
def gold(prompts, responses):
    return [float(len(r)) for r in responses]
gold.parts = {
    "sea": lambda prompts, responses: [float("sea" in r) for r in responses],
    "length": lambda prompts, responses: [len(r) / 1000 for r in responses],
}
"""


def test_accuracy_by_deciding_part(trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "mine.py").write_text(GOLD, encoding="utf-8")
    more = ("--gold", f"{tmp_path / 'mine.py'}:gold", "--allow_code", "true")
    result = evaluate(capsys, trained.folder, trained.heldout, tmp_path / "out", *more)
    assert result.code == 0, result.err
    found = read(tmp_path / "out" / "results.json")["sets"]["heldout"]["by_part"]
    pairs = load_feedback(str(trained.heldout)).comparisons
    sea = [c for c in pairs if "sea" in c.chosen and "sea" not in c.rejected]
    assert found["sea"]["n_scored"] == len(sea) > 0
    assert 0 < found["length"]["n_scored"] <= len(pairs) - len(sea)
    assert "decided by sea" in result.out
    assert "the part of the gold reward that decides" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_gold_that_knows_none_of_the_prompts(trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    requests = write_rows(tmp_path / "requests.jsonl", [{"request": "x?", "mentions": ["y"], "topic": "z"}])
    result = evaluate(capsys, trained.folder, trained.heldout, tmp_path / "out", "--gold", requests)
    assert "decides a comparison" in result.error["error"]


@pytest.mark.parametrize("flag", ["--baselines", "--follow_through"])
def test_critiques_of_a_critic_are_not_read(flag: str, trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    more = (flag, "true", "--critic", trained.folder)
    assert "critic" in evaluate(capsys, trained.model, trained.heldout, tmp_path, *more).error["error"]


def test_follow_through(trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    """A reward that wants short responses follows who calls them too long, and not who misses a friendly close."""
    rows = [
        {"prompt": f"when is it {n}?", "chosen": f"at {n}.", "rejected": f"at {n}. in town. at the door.",
         "chosen_critiques": ["There is no friendly close."], "rejected_critiques": ["Far too long."]}
        for n in range(6)
    ]  # fmt: skip
    data = write_rows(tmp_path / "rows.jsonl", rows)
    (tmp_path / "short.yaml").write_text("- {statement: is short, measure: words, direction: less}", encoding="utf-8")
    result = evaluate(capsys, tmp_path / "short.yaml", data, tmp_path / "out", "--follow_through", "true")
    assert result.code == 0, result.err
    found = read(tmp_path / "out" / "results.json")["follow_through"]["rows"]
    assert found["by_aspect"]["length"]["value"] == 1.0 and found["by_aspect"]["close"]["value"] == 0.0
    assert found["overall"]["value"] == 0.5 and found["faults"] == 12
    assert "the reward is higher in 50.0% of 12 cases" in " ".join(result.out.split())
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Does it do what people said?" in page and "There is no friendly close" in page

    silent = [{name: value for name, value in row.items() if "critiques" not in name} for row in rows]
    data = write_rows(tmp_path / "silent.jsonl", silent)
    result = evaluate(capsys, tmp_path / "short.yaml", data, tmp_path / "none", "--follow_through", "true")
    assert result.code == 0 and "no follow-through" in result.err
    assert "follow_through" not in read(tmp_path / "none" / "results.json")


def test_ties(trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    """A model that gives equal rewards is right on half of the pairs, not on all or none."""
    folder = classifier(tmp_path / "theirs")
    model = AutoModelForSequenceClassification.from_pretrained(str(folder))
    torch.nn.init.zeros_(model.score.weight)
    model.save_pretrained(str(folder))
    result = evaluate(capsys, folder, trained.heldout, tmp_path / "out")
    assert result.code == 0, result.err
    found = read(tmp_path / "out" / "results.json")["sets"]["heldout"]
    assert (found["ties"], found["accuracy"]["value"], found["brier"]) == (12, 0.5, 0.25)
    assert read(tmp_path / "out" / "theirs.json")["accuracy"] == 0  # as RewardBench counts them
    assert all(row["correct"] == 0.5 for row in read_rows(tmp_path / "out" / "scores.jsonl"))


def test_ratings_of_one_prompts_responses_make_comparisons(trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    rows = [{"prompt": "who is it?", "response": r, "rating": n / 2} for n, r in enumerate(["no", "it is", "the sea"])]
    result = evaluate(capsys, trained.folder, write_rows(tmp_path / "rated.jsonl", rows), tmp_path / "out")
    assert result.code == 0, result.err
    assert read(tmp_path / "out" / "results.json")["sets"]["rated"]["n_scored"] == 3


def test_a_set_without_comparisons(trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    rows = write_rows(tmp_path / "shown.jsonl", [{"prompt": "who is it?", "completion": "the sea"}])
    result = evaluate(capsys, trained.folder, rows, tmp_path / "out")
    assert result.code == 2
    assert result.error["error"] == "There are no comparisons to judge a model by"
    assert result.error["where"] == "shown"


def test_results_are_not_replaced_without_permission(trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    assert evaluate(capsys, trained.folder, trained.heldout, tmp_path / "out").code == 0
    result = evaluate(capsys, trained.folder, trained.heldout, tmp_path / "out", "--overwrite_output_dir", "false")
    assert result.code == 2
    assert "--overwrite_output_dir true" in result.error["what to do"]
    assert "--resume" not in result.error["what to do"]


def test_results_are_not_written_to_the_models_folder(trained: TrainedReward, capsys: Any) -> None:
    before = contents(trained.folder)
    result = evaluate(capsys, trained.folder, trained.heldout, trained.folder)
    assert result.code == 2
    assert "holds what `rrm-lm reward` made, and this is `rrm-lm evaluate`" in result.error["error"]
    assert contents(trained.folder) == before


def test_results_go_to_a_folder_named_after_the_model(
    trained: TrainedReward, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    shutil.copytree(trained.folder, tmp_path / "runs" / "first")
    result = run(capsys, "evaluate", "--model", "runs/first", "--dataset", trained.heldout)
    assert result.code == 0, result.err
    folder = tmp_path / "outputs" / "evaluate" / "runs-first"
    assert read(folder / "results.json")["model"] == "first"
    assert (folder / "first.json").is_file()


@pytest.mark.parametrize("family", ["gemma3", "gpt2"])
def test_an_adapter_with_dropout_and_other_layers(family: str, tmp_path: Path, capsys: Any, pairs: Path) -> None:
    """The training settings are restored, also in families with other layer names."""
    base = save_tiny_model(tmp_path / "base", family)
    words = ("--lora_dropout", 0.1, "--max_steps", 2, "--use_cpu", "true", "--dtype", "float32", "--max_length", 100)
    made = run(
        capsys, "reward", "--model_name_or_path", base, "--dataset_name", pairs, "--output_dir", tmp_path / "out",
        "--eval_dataset_name", pairs, "--save_strategy", "no", *words,
    )  # fmt: skip
    assert made.code == 0, made.err
    assert evaluate(capsys, tmp_path / "out", pairs, tmp_path / "judged").code == 0
    close(rewards_of(tmp_path / "judged"), rewards_of(tmp_path / "out"))


def test_rewards_of_another_prompt_text_are_not_taken_from_the_cache(trained: TrainedReward, tmp_path: Path) -> None:
    folder = str(classifier(tmp_path / "theirs"))
    template = tmp_path / "dated.jinja"
    template.write_text(
        "{{ strftime_now('%d %B %Y') }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}",
        encoding="utf-8",
    )
    dated: dict[str, Any] = {"chat_template_path": str(template)}
    options: list[dict[str, Any]] = [
        {}, {"pad_token": "<|im_start|>"}, {"fold_system": True}, dated, dated | {"chat_date": "2024-02-29"},
    ]  # fmt: skip
    files = []
    for given in options:
        args = EvaluateArguments(dataset=[str(trained.heldout)], model=[folder], **given)
        scorer = cached_scorer(args, folder)
        assert isinstance(scorer, CachedScorer)
        files.append(scorer.file)
    assert len(set(files)) == len(options)
    today: dict[str, Any] = {**dated, "chat_date": date.today().isoformat()}
    args = EvaluateArguments(dataset=[str(trained.heldout)], model=[folder], **today)
    assert cached_scorer(args, folder).file == files[3]  # type: ignore[attr-defined]
