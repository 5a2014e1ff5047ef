"""What users of Hugging Face's trainers call on `rrm_lm.RewardTrainer`, and what its runs may not write over."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import Trainer

import rrm_lm
from rrm_lm.api.policy.config import PolicyConfig
from rrm_lm.api.reward.model import load_start
from rrm_lm.errors import ConfigError, DataError
from rrm_lm.models.pretrained import load_causal_lm
from rrm_lm.runs.policy import train_policy
from rrm_lm.settings.data import PromptArguments
from rrm_lm.settings.models import ModelArguments
from rrm_lm.settings.training import MonitorArguments, PolicyRunArguments, RewardArguments
from tests.smoke.commands import write_rows
from tests.tiny import some_comparisons

WORDS = ("moon", "sea", "story", "answer", "sun", "blue moon", "rock")


def rows(count: int, critiques: bool = False) -> list[dict[str, Any]]:
    return [
        {
            "prompt": one.prompt[0].content,
            "chosen": one.chosen,
            "rejected": one.rejected,
            **({"chosen_critiques": ["clear"], "rejected_critiques": ["too long"]} if critiques else {}),
        }
        for one in some_comparisons(count, critiques=False)
    ]


def trainer(tiny: Path, out: Path, data: Any = None, held_out: Any = None, **more: Any) -> rrm_lm.RewardTrainer:
    values: dict[str, Any] = {"max_steps": 1, "per_device_train_batch_size": 2, "lora_r": 4, "dtype": "float32"}
    values |= {"max_length": 64, "max_critique_length": 8, "learning_rate": 1e-2}
    args = rrm_lm.RewardConfig(output_dir=str(out), use_cpu=True, report_to="none", **{**values, **more})
    return rrm_lm.RewardTrainer(
        str(tiny),
        args,
        train_dataset=rows(6) if data is None else data,
        eval_dataset=held_out or rows(4),
    )


def test_predictions_are_in_the_order_of_the_rows(tiny: Path, tmp_path: Path) -> None:
    made = trainer(tiny, tmp_path / "out")
    data = rows(7)
    found = made.predict(data)
    model = made.reward_model
    each = [model.score(row["prompt"], [row["chosen"], row["rejected"]]) for row in data]
    assert found.predictions == pytest.approx(np.array(each), abs=1e-5)
    assert found.metrics is not None and found.label_ids is not None
    assert {"test_accuracy", "test_loss", "test_margin"} <= found.metrics.keys() and not np.any(found.label_ids)
    assert found.metrics["test_accuracy"] == made.evaluate(data)["eval_accuracy"]
    with pytest.raises(DataError, match="no pairs"):
        made.predict({"a": data})


def test_a_model_that_writes_critiques_first_reads_them_in_any_set(tiny: Path, tmp_path: Path) -> None:
    data = rows(4)
    made = trainer(tiny, tmp_path / "out", rows(6, critiques=True), data, critique_first=True, critic_epochs=1)
    made.train()
    own, given = made.evaluate(), made.evaluate(data)
    assert given == pytest.approx(own, abs=1e-4)
    assert made.predict(data).metrics["test_margin"] == pytest.approx(own["eval_margin"], abs=1e-4)  # type: ignore[index]


def test_own_critiques_are_not_learned_as_responses(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sft_weight would also learn the model's own critiques"):
        rrm_lm.RewardConfig(output_dir=str(tmp_path), critique_first=True, sft_weight=0.3)


def test_an_upload_has_the_card_and_the_results(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self, token=None, private=None: None)
    monkeypatch.setattr(Trainer, "_finish_current_push", lambda self: None)

    def upload(**given: Any) -> None:
        seen.append({path.name for path in Path(given["folder_path"]).iterdir()})

    monkeypatch.setattr("transformers.trainer.hf_api", lambda: type("Api", (), {"upload_folder": staticmethod(upload)}))
    made = trainer(tiny, tmp_path / "out", push_to_hub=True, hub_model_id="nobody/nothing", save_strategy="no")
    made.hub_model_id = "nobody/nothing"  # which init_hf_repo sets
    made.train()
    assert len(seen) == 1 and seen[0] >= {"README.md", "results.json", "adapter_model.safetensors", "report.html"}


def test_named_sets_and_one_set_are_the_same_split(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_rows(folder / "train.jsonl", rows(9))
    write_rows(folder / "test.jsonl", rows(3))
    made = trainer(tiny, tmp_path / "out", held_out={"mine": str(folder)}, fail_on_leak=False)
    assert {name: len(part.comparisons) for name, part in made.heldout_feedback.items()} == {"mine": 3}


def test_a_run_does_not_replace_what_it_reads(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(tiny, out / "merged")
    data = write_rows(tmp_path / "out" / "mine.jsonl", rows(6))
    message = "The run would replace what it reads"
    for start, given in ((out / "merged", rows(6)), (out, rows(6)), (tiny, str(data))):
        with pytest.raises(ConfigError, match=message):
            trainer(start, out, given, overwrite_output_dir=True)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{out / "merged"}"}}')
    with pytest.raises(ConfigError, match="the backbone of"):
        trainer(adapter, out, overwrite_output_dir=True)
    with pytest.raises(ConfigError, match=message):
        rrm_lm.PPOTrainer(
            str(out / "merged"), lambda prompts, responses: [1.0], ["hi"], rrm_lm.PPOConfig(output_dir=str(out))
        )
    assert (out / "merged" / "config.json").is_file()


def test_a_loaded_model_is_loaded_again_as_it_was(tiny: Path) -> None:
    model: Any = load_causal_lm(str(tiny), dtype="float32")
    model.config.quantization_config = {"quant_method": "nothing"}
    start = load_start(model, ModelArguments(trust_remote_code=True))
    assert start.loading is not None
    assert start.loading["trust_remote_code"] and start.loading["quantization_config"] == {"quant_method": "nothing"}


def test_a_policy_run_does_not_replace_its_prompts(tiny: Path, tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "who?"}])
    config = PolicyConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    data, model = PromptArguments(prompts=[str(prompts)]), ModelArguments(model_name_or_path=str(tiny))
    rewards = RewardArguments(reward_function=["rewards.py:f"])
    with pytest.raises(ConfigError, match="The run would replace what it reads"):
        train_policy(data, rewards, model, config, MonitorArguments(), PolicyRunArguments())
    assert prompts.is_file()
