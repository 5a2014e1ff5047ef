"""Runs commands in this process on tiny models and files, and reads what they wrote."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from rrm_lm.cli.main import main
from rrm_lm.feedback.records import Comparison
from tests.tiny import some_comparisons

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Result:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> dict[str, str]:
        """The parts of the error message on stderr. Fails if there is a traceback or a second message."""
        assert "Traceback" not in self.err and "Traceback" not in self.out, self.err
        lines = self.err.splitlines()
        starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
        assert len(starts) == 1, self.err
        parts = {"error": lines[starts[0]].removeprefix("error: ")}
        for line in lines[starts[0] + 1 :]:
            label, _, text = line.strip().partition(": ")
            parts[label] = text
        return parts


def run(capture: Any, *words: object) -> Result:
    """Run `rrm-lm` with these arguments. `capture` is pytest's capsys."""
    capture.readouterr()
    code = main([str(word) for word in words])
    printed = capture.readouterr()
    return Result(code, printed.out, printed.err)


def train(capture: Any, model: Path, data: Path | Sequence[Path], output: Path, *more: object) -> Result:
    """`rrm-lm reward` with a few quick steps; `more` overrides the defaults."""
    files = [data] if isinstance(data, Path) else data
    settings = {
        "max_length": 160,
        "max_critique_length": 12,
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "warmup_steps": 0,
        "learning_rate": "5e-3",
        "save_strategy": "no",
        "disable_tqdm": "true",
        "dtype": "float32",
        "use_cpu": "true",
        "lora_r": 4,
    }
    names = ("--model_name_or_path", model, "--output_dir", output, "--dataset_name", *files)
    return run(capture, "reward", *names, *flags(settings, more))


def flags(settings: Mapping[str, object], more: Sequence[object] = ()) -> list[object]:
    """Settings as command-line flags; those that `more` sets are replaced by its."""
    given = {str(word).removeprefix("--") for word in more if str(word).startswith("--")}
    return [word for name, value in settings.items() if name not in given for word in (f"--{name}", value)] + [*more]


def pair_rows(count: int, *, seed: int = 0, critiques: bool = True) -> list[dict[str, Any]]:
    """Rows of pairs, with critiques and ratings unless `critiques` is off."""
    return [pair_row(comparison, critiques) for comparison in some_comparisons(count, seed=seed)]


def pair_row(comparison: Comparison, critiques: bool = True) -> dict[str, Any]:
    """One comparison as a row of a file."""
    row: dict[str, Any] = {
        "prompt": comparison.prompt[-1].content,
        "chosen": comparison.chosen,
        "rejected": comparison.rejected,
    }
    if critiques:
        row["chosen_critiques"] = list(comparison.chosen_critiques)
        row["rejected_critiques"] = list(comparison.rejected_critiques)
        row["chosen_rating"], row["rejected_rating"] = 0.75, 0.25
    return row


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def rewards_of(folder: Path) -> list[tuple[float, float]]:
    """(reward of chosen, reward of rejected) for each row of a folder's scores.jsonl."""
    return [(row["reward_chosen"], row["reward_rejected"]) for row in read_rows(folder / "scores.jsonl")]


def check_readable_policy(folder: Path, base: Path) -> None:
    """PEFT and plain transformers load the adapter and its merged checkpoint, which agree and differ from the base."""
    ids = torch.tensor([[1, 30, 40, 50, 60]])
    with torch.no_grad():
        adapted = AutoPeftModelForCausalLM.from_pretrained(str(folder)).eval()(input_ids=ids).logits
        merged = AutoModelForCausalLM.from_pretrained(str(folder / "merged"))(input_ids=ids).logits
        bare = AutoModelForCausalLM.from_pretrained(str(base))(input_ids=ids).logits
    torch.testing.assert_close(merged, adapted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(bare, adapted, atol=1e-2)


def adapter(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def same(left: Path, right: Path) -> bool:
    """Whether two folders hold the same adapter, bit for bit."""
    one, other = adapter(left), adapter(right)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file in a folder except its lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".lock")
    }


def load_bench(name: str) -> Any:
    """Import `scripts/bench/NAME.py`, which is not in a package, and the modules next to it."""
    file = Path(__file__).parents[2] / "scripts" / "bench" / f"{name}.py"
    described = importlib.util.spec_from_file_location(f"bench_{name}", file)
    assert described is not None and described.loader is not None
    sys.path.insert(0, str(file.parent))
    module = importlib.util.module_from_spec(described)
    sys.modules[described.name] = module
    described.loader.exec_module(module)
    return module
