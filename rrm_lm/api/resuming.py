"""Resuming a run: the command for it, and the settings and files that must be unchanged.

Every setting except `MAY_CHANGE` is compared, and the contents of every file that a setting names. The global batch
size is compared instead of its factors, so a run may resume with its batch distributed differently.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rrm_lm.launch.launcher import COMMAND
from rrm_lm.storage import json_text, sha256

# Settings that may differ when a run is resumed: they change what is logged, saved and measured, and how
# the same computation is executed, but not what is learned.
_MAY_CHANGE = {
    "output locations and extra outputs": """
        output_dir dry_run overwrite_output_dir allow_config_change allow_world_size_change resume_from_checkpoint merge
        learning_curve push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision
    """,
    "logging": """
        logging_strategy logging_steps logging_first_step logging_nan_inf_filter log_on_each_node log_level
        log_level_replica disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id
        trackio_static_space_id include_num_input_tokens_seen skip_memory_metrics debug do_train do_eval do_predict
        num_sample_generations
    """,
    "checkpoints": """
        save_strategy save_steps save_total_limit save_on_each_node save_only_model enable_jit_checkpoint
    """,
    "evaluation during training, except the choice of the best checkpoint": """
        eval_on_start eval_delay per_device_eval_batch_size eval_accumulation_steps eval_do_concat_batches
        eval_use_gather_object batch_eval_metrics prediction_loss_only include_for_metrics fail_on_leak
        leak_threshold
    """,
    "limits on reading": "max_file_gb max_cell_chars",
    "execution": """
        micro_batch_tokens rollout_batch_tokens compile_layers rollouts rollout_url rollout_key_env max_rollout_mismatch
        share_prefixes local_rollout_forward_batch_size
        activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing
        gradient_checkpointing_kwargs torch_empty_cache_steps auto_find_batch_size
        dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
        dataloader_multiprocessing_context ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers
        ddp_static_graph ddp_backend ddp_timeout fsdp fsdp_config deepspeed parallelism_config local_rank use_cpu
        average_tokens_across_devices
    """,
}
MAY_CHANGE = frozenset(name for names in _MAY_CHANGE.values() for name in names.split())
_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")  # per process
_NAMES_FILES = (
    "model_name_or_path", "chat_template_path", "dataset_name", "eval_dataset_name", "prompts", "eval_prompts",
    "reward_model", "reward_function", "value_model", "gold", "monitor_reward_model", "criteria",
)  # fmt: skip
_HASHED = (".safetensors", ".bin", ".gguf", ".json", ".jsonl", ".csv", ".parquet", ".gz", ".zst", ".py", ".jinja")
_RUN_RECORDS = re.compile(r"\..*|(run|manifest|results|trainer_state|leakage|examples|\w+_results)\.json|scores\.jsonl")
_HASHED_IN_FULL = 64 << 20  # bytes; only the ends of larger files are hashed
_ENDS = 1 << 20  # bytes hashed at each end of a larger file


def identity(*settings: Any, processes: int) -> dict[str, Any]:
    """Everything that must be unchanged when a run is resumed."""
    found: dict[str, Any] = {}
    for one in settings:
        for item in dataclasses.fields(one):
            if item.init and item.name not in MAY_CHANGE:
                found[item.name] = _as_json(getattr(one, item.name))
    if all(name in found for name in _BATCH):
        found["global_batch_size"] = processes * found.pop(_BATCH[0]) * found.pop(_BATCH[1])
    named = (found.get(setting) or [] for setting in _NAMES_FILES)
    for name in sorted({name for value in named for name in ([value] if isinstance(value, str) else value)}):
        if (path := _named_file(name)) is not None:
            found[f"contents of {name}"] = fingerprint(path)
    return found


def is_asked(resume_from_checkpoint: str | bool | None) -> bool:
    """Whether an earlier run is to be resumed."""
    return str(resume_from_checkpoint or "false").lower() not in ("false", "no", "none")


def origin(resume_from_checkpoint: str | bool | None) -> Path | None:
    """The output folder of the named checkpoint; None if the newest checkpoint of this run is meant."""
    asked = str(resume_from_checkpoint or "false")
    return None if asked.lower() in ("true", "yes") or not is_asked(asked) else Path(asked).parent


def fingerprint(path: Path) -> str:
    """A hash of the contents of a file or folder: 16 hexadecimal digits.

    For a folder, the weights, records, settings and code are hashed, but not logs. For a file above 64 MiB, only the
    size and the first and last MiB are hashed (which include the header of weights), so a large model is fast. For a
    store of feedback, the answers that count are hashed.
    """
    # Here and not above: `rrm-lm --help` imports this module, and these import YAML and SQLite.
    from rrm_lm.feedback.criteria.records import CRITERIA_FILE
    from rrm_lm.feedback.reading.tables import every_data_file
    from rrm_lm.feedback.store.files import is_store
    from rrm_lm.feedback.store.records import store_digest

    if path.is_file():
        return store_digest(path)[:16] if is_store(path) else _of_file(path)
    digest = hashlib.sha256()
    listed = [file for file in sorted(path.iterdir()) if file.is_file() and not _RUN_RECORDS.fullmatch(file.name)]
    content = [file for file in listed if file.suffix in _HASHED or file.name == CRITERIA_FILE]
    for file in content or every_data_file(path):  # a data set may be in subfolders; those of a model hold checkpoints
        digest.update(f"{file.relative_to(path)} {_of_file(file)}\n".encode())
    return digest.hexdigest()[:16]


def resume_command(words: Sequence[str]) -> str:
    """The shell command that resumes the current run. The words are the name and flags of the current command."""
    typed = os.environ.get(COMMAND)
    whole = shlex.split(typed) if typed else ["rrm-lm", *words]
    kept: list[str] = []
    remaining = iter(whole)
    for word in remaining:
        flag = word.partition("=")[0].replace("-", "_")
        if flag != "__resume_from_checkpoint":
            kept.append(word)
        elif "=" not in word:
            next(remaining, None)
    line = shlex.join([*kept, "--resume_from_checkpoint", "true"])
    if typed is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return f"{line}   (with the same launcher and number of processes)"
    return line


def _of_file(path: Path) -> str:
    size = path.stat().st_size
    if size <= _HASHED_IN_FULL:
        return sha256(path)[:16]
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_ENDS))
        file.seek(-_ENDS, os.SEEK_END)
        digest.update(file.read(_ENDS))
    return digest.hexdigest()[:16]


def _named_file(text: str) -> Path | None:
    """The file or folder in a setting, without the function after a colon."""
    name = text.rpartition(":")[0] if ".py:" in text else text
    if not name or len(name) > 1000 or "\n" in name:
        return None
    path = Path(name).expanduser()
    try:
        return path if path.exists() else None
    except OSError:
        return None


def _as_json(value: Any) -> Any:
    try:
        return json.loads(json_text(value))
    except TypeError:
        return str(value)
