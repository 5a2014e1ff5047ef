"""Commands with `--compile_layers true`: they save what they trained, and a reload gives identical rewards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rrm_lm.models.backbone import Backbone
from tests.smoke.commands import pair_rows, read, run, train, write_rows


@pytest.mark.slow
def test_a_compiled_model_is_saved_and_reloads(
    tiny: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, compiled = Backbone.compile_layers, []

    def eager(self: Backbone) -> None:  # without a C++ compiler
        own(self, "aot_eager")
        compiled.append(self)

    monkeypatch.setattr(Backbone, "compile_layers", eager)
    data = write_rows(tmp_path / "mine.jsonl", pair_rows(12))
    done = train(capsys, tiny, data, tmp_path / "reward", "--compile_layers", "true")
    assert done.code == 0, done.err
    assert "reloaded, and its rewards are identical" in done.err and len(compiled) == 1
    words = ("--dataset_name", data, "--sft_on", "chosen", "--max_steps", 2, "--eval_fraction", 0)
    more = ("--report_to", "none", "--save_strategy", "no", "--compile_layers", "true")
    done = run(capsys, "sft", "--model_name_or_path", tiny, "--output_dir", tmp_path / "sft", *words, *more)
    assert done.code == 0, done.err
    assert "reloaded, and its logits are identical" in done.err and len(compiled) == 2
    assert read(tmp_path / "sft" / "run.json")["outcome"] == "finished"
