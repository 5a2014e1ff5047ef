"""Host memory of two processes that load one model and shard it with FSDP2.

    python scripts/bench/loading.py      writes scripts/bench/results/loading.json (three minutes, 8 GB of memory)

The model is random, 1.6 GB in float32. Both processes run on the CPU, so their shards, one model together, are in host
memory as well; on GPUs they are not. Every 10 ms, the proportional set sizes of both are added: private memory, and
each page of a file that is mapped once. `peak_over_model` is the largest sum, less what both held before loading, over
the bytes of the model; `peak_without_shards` is one less. The second case converts the weights to bfloat16 while
loading, so that nothing can be mapped.
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
from transformers import LlamaConfig, LlamaForCausalLM

from rrm_lm.models.backbone import Backbone
from rrm_lm.models.pretrained import load_causal_lm, process_state
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.models.sharding import fsdp_units, shard_for_use

ROOT = Path(__file__).parents[2]
SHAPE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 20, "num_attention_heads": 16}
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
    """The largest sum of both processes' memory, in bytes and over the model's bytes."""
    config = ROOT / "configs" / "accelerate" / "fsdp2.yaml"
    with tempfile.TemporaryDirectory() as out:
        words = [__file__, "--child", folder, "--dtype", dtype, "--out", out]
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run([sys.executable, *launcher, *words], check=True, cwd=ROOT, env=environment)
        found = [json.loads((Path(out) / f"{rank}.json").read_text()) for rank in (0, 1)]
    base = sum(one["before"]["all"] for one in found)
    sums = []
    for at, held in found[0]["samples"]:
        other = min(found[1]["samples"], key=lambda sample: abs(sample[0] - at))[1]
        sums.append({name: held[name] + other[name] for name in held})
    peak = max(sums, key=lambda one: one["all"])
    after, model = sum(one["after"]["all"] for one in found) - base, SIZES[dtype] * parameters
    ratio = round((peak["all"] - base) / model, 3)
    return {
        "model": model, "peak": peak["all"] - base, "peak_parts": peak, "after": after,
        "peak_over_model": ratio, "peak_without_shards": round(ratio - 1, 3),
    }  # fmt: skip


def save_random(folder: str, **shape: Any) -> int:
    """Save a random model; returns the number of its parameters."""
    model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False))
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
    with tempfile.TemporaryDirectory() as folder:
        parameters = save_random(folder, **SHAPE)
        for dtype in SIZES:
            cases.append({"dtype": dtype, **measure(folder, dtype, parameters)})
            print(json.dumps(cases[-1]), flush=True)
    about = {"machine": machine(), "commit": commit(), "saved_as": "float32", "processes": 2}
    print(save("loading.json", {**about, "cases": cases}))


if __name__ == "__main__":
    main()
