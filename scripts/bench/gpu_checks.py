"""What `gpu.py` checks before it measures: the embedded model in bfloat16 against float32, sharing against padding,
rollouts against the uncached model, and whether the host waits for the GPU inside an update.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from gpu_job import BenchJob
from gpu_sides import DTYPE, DeviceClock, lora, our_ppo, pairs, prompts
from torch import Tensor

from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding import decoders
from rrm_lm.models.decoding.rollouts import roll_out
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.pretrained import load_causal_lm, rounding, set_seed
from rrm_lm.models.reward import ADAPTER, RewardModel, RewardSettings
from rrm_lm.models.tokenizers import load_tokenizer
from rrm_lm.text.batching import collate
from rrm_lm.text.chat import Line
from rrm_lm.training.ppo.update import PolicyUpdate


def checks(job: BenchJob) -> dict[str, Any]:
    """Each check: the largest `difference`, what is `allowed`, and whether it is `ok`."""
    tokenizer: Any = load_tokenizer(job.embedded)
    pad, device = int(tokenizer.pad_token_id), torch.device(job.device)
    lines = [
        [Line(prompt + ids, len(prompt), len(prompt + ids) - 1) for ids in responses]
        for prompt, *responses in pairs(job, len(tokenizer))
    ]
    found = {}
    for dtype in (torch.float32, DTYPE):
        set_seed(0)
        loaded: Any = load_causal_lm(job.embedded, dtype=dtype)
        model = RewardModel.create(Backbone(loaded.to(device), pad), lora(), RewardSettings(job.embedded))
        _randomize(model)
        found[dtype] = _rewards_and_gradients(model.to(device), lines)
        if dtype == DTYPE:
            model.backbone.can_share = False
            found["padded"] = _rewards_and_gradients(model, lines)
            model.backbone.can_share = True
            worst, used = _short_of_the_best(model.backbone, prompts(job, len(tokenizer))[:8], job.load.new_tokens)
    bound = rounding(DTYPE, device)
    return {
        "rewards_bfloat16": _compared(found[DTYPE][0], found[torch.float32][0], bound),
        "gradients_bfloat16": _compared(found[DTYPE][1], found[torch.float32][1], 2 * bound, norm=True),
        "rewards_shared": _compared(found[DTYPE][0], found["padded"][0], bound),
        "gradients_shared": _compared(found[DTYPE][1], found["padded"][1], 2 * bound, norm=True),
        "rollouts": {"difference": worst, "allowed": bound, "ok": worst <= bound and used == "lean", "decoder": used},
        "host_waits_per_update": _waits(job, tokenizer) if device.type == "cuda" else None,
    }


def _randomize(model: RewardModel) -> None:
    """Adapters that matter: B starts as zero."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)


def _rewards_and_gradients(model: RewardModel, lines: Sequence[Sequence[Line]]) -> tuple[Tensor, Tensor]:
    """(lines,) rewards, and the gradient of the pairs' loss in all adapters as one vector, on the CPU."""
    model.train()
    rewards, backbone = [], model.backbone
    model.zero_grad()
    for group in lines:
        rows = backbone.rows([line.ids for line in group])
        output = model(collate(rows, backbone.pad_id).to(backbone.device), group)
        torch.nn.functional.softplus(output.rewards[1] - output.rewards[0]).backward()
        rewards.append(output.rewards.detach().cpu())
    gradients = [p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None]
    return torch.cat(rewards), torch.cat(gradients)


def _compared(mine: Tensor, theirs: Tensor, allowed: float, norm: bool = False) -> dict[str, Any]:
    """The difference relative to the largest number, or of the norm to that of the other."""
    gap = mine.double() - theirs.double()
    difference = float(gap.norm() / theirs.double().norm() if norm else gap.abs().max() / theirs.abs().max())
    return {"difference": round(difference, 5), "allowed": allowed, "ok": difference <= allowed}


@torch.no_grad()
def _short_of_the_best(backbone: Backbone, asked: Sequence[Sequence[int]], count: int) -> tuple[float, str]:
    """How far, relative to the largest logit, a greedy rollout's tokens are below the best by the uncached model; and
    which decoder wrote them.
    """
    written = roll_out(backbone, ADAPTER, asked, Sampling(count, temperature=0.0), end_ids=[])
    worst = 0.0
    for prompt, (ids,) in zip(asked, written, strict=True):
        with backbone.using(ADAPTER):
            every = torch.tensor([[*prompt, *ids]], device=backbone.device)
            logits = backbone.causal_lm(input_ids=every, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        chosen = logits.gather(-1, torch.tensor(ids, device=logits.device)[:, None])[:, 0]
        worst = max(worst, float((logits.amax(-1) - chosen).max() / logits.abs().max()))
    return round(worst, 5), ", ".join(name for name, works in decoders._agreeing[backbone].items() if works is True)


def _waits(job: BenchJob, tokenizer: Any) -> dict[str, int]:
    """Where the host waited for the GPU inside an update, and how often (by torch's own guard)."""
    seen: dict[str, int] = {}

    def watched(method: Any) -> Any:
        def call(self: Any, *args: Any) -> Any:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    result = method(self, *args)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            for one in said:
                if "synchroniz" in str(one.message):
                    place = f"{one.filename.rsplit('/', 1)[-1]}:{one.lineno}"
                    seen[place] = seen.get(place, 0) + 1
            return result

        return call

    accumulate, step = PolicyUpdate._accumulate, PolicyUpdate._step
    PolicyUpdate._accumulate, PolicyUpdate._step = watched(accumulate), watched(step)  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            vocabulary = min(len(tokenizer), int(job.config().vocab_size))
            our_ppo(job, tokenizer, vocabulary, DeviceClock(torch.device(job.device)), folder).trainer.train()
    finally:
        PolicyUpdate._accumulate, PolicyUpdate._step = accumulate, step  # type: ignore[method-assign]
    return seen
