"""Host memory of two processes that load one model and shard it with FSDP2.

    python scripts/bench/loading.py      writes scripts/bench/results/loading.json (six minutes, 8 GB of memory)

The models are random, 1.6 GB in float32: one whose weights are used as they are, and a mixture of experts, whose
weights transformers merges while loading. Each is loaded as saved and converted to bfloat16. Both processes run on the
CPU, so their shards, one model together, are in host memory as well; on GPUs they are not. Every 10 ms, the memory of
both processes is added, less what both held before loading. `private_over_model` is the largest sum of private memory
over the bytes of the model. `peak_over_model` also counts each page of a mapped file once; the system frees such pages
when memory is short. Converted to bfloat16, the float32 file that is read counts as two models.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import torch
from common import commit, machine, save
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from rrm_lm.models.backbone import Backbone
from rrm_lm.models.pretrained import load_causal_lm, process_state
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.models.sharding import fsdp_units, shard_for_use
from rrm_lm.models.together import loading_together

ROOT = Path(__file__).parents[2]
SHAPES = {
    "llama": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 20},
    "mixtral": {"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 7},
}
SIZES = {"float32": 4, "bfloat16": 2}  # bytes


def held() -> dict[str, int]:
    """Bytes of this process: private memory, its share of mapped files, and both."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    parts = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if ":" in line}
    return {"private": parts["Pss_Anon"] + parts["Pss_Shmem"], "files": parts["Pss_File"], "all": parts["Pss"]}


def load(folder: str, dtype: str, out: Path) -> None:
    """Load and shard in this process; write what it held, by time."""
    state, samples, stop = process_state(), [], threading.Event()
    torch.mm(torch.randn(512, 512), torch.randn(512, 512))  # the libraries' own buffers
    gc.collect()
    state.wait_for_everyone()

    def watch() -> None:
        while not stop.is_set():
            samples.append((time.time(), held()))
            time.sleep(0.01)

    before = held()
    thread = threading.Thread(target=watch)
    thread.start()
    with loading_together():
        backbone = Backbone(load_causal_lm(folder, dtype=dtype), 0)
    lora = LoraConfig(r=16, task_type="SEQ_CLS", target_modules="all-linear")
    model = RewardModel.create(backbone, lora, RewardSettings(folder))
    assert shard_for_use(model) and len(fsdp_units(model)) > 1
    state.wait_for_everyone()
    after = held()
    stop.set()
    thread.join()
    rank = state.process_index
    (out / f"{rank}.json").write_text(json.dumps({"before": before, "after": after, "samples": samples}))


def measure(folder: str, dtype: str, parameters: int) -> dict[str, Any]:
    """The largest sums of both processes' memory, in bytes and over the model's bytes."""
    config = ROOT / "configs" / "accelerate" / "fsdp2.yaml"
    with tempfile.TemporaryDirectory() as out:
        words = [__file__, "--child", folder, "--dtype", dtype, "--out", out]
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run([sys.executable, *launcher, *words], check=True, cwd=ROOT, env=environment)
        found = [json.loads((Path(out) / f"{rank}.json").read_text()) for rank in (0, 1)]
    parts, sums = found[0]["before"], []
    base, after = ({part: sum(one[when][part] for one in found) for part in parts} for when in ("before", "after"))
    for at, held in found[0]["samples"]:
        other = min(found[1]["samples"], key=lambda sample: abs(sample[0] - at))[1]
        sums.append({part: held[part] + other[part] - base[part] for part in parts})
    peaks, model = {part: max(one[part] for one in sums) for part in parts}, SIZES[dtype] * parameters
    return {
        "dtype": dtype, "model": model, "peaks": peaks, "after": {part: after[part] - base[part] for part in parts},
        "private_over_model": round(peaks["private"] / model, 3), "peak_over_model": round(peaks["all"] / model, 3),
    }  # fmt: skip


def save_random(folder: str, kind: str, vocab_size: int = 32000, **shape: Any) -> int:
    """Save a random model; returns the number of its parameters."""
    heads: dict[str, Any] = {"num_attention_heads": 16, "num_key_value_heads": 16}
    if kind == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**shape, **heads, vocab_size=vocab_size))
    else:
        model = MixtralForCausalLM(MixtralConfig(**shape, **heads, vocab_size=vocab_size, num_local_experts=8))
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        load(args.child, args.dtype, args.out)
        return
    cases = []
    for kind, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            parameters = save_random(folder, kind, **shape)
            for dtype in SIZES:
                cases.append({"model_type": kind, **measure(folder, dtype, parameters)})
                print(json.dumps(cases[-1]), flush=True)
    about = {"machine": machine(), "commit": commit(), "saved_as": "float32", "processes": 2}
    print(save("loading.json", {**about, "cases": cases}))


if __name__ == "__main__":
    main()
