"""What a settings file may do only with permission on the command line.

People share settings files and read them less carefully than code. So a file may name data, but no code to run, no
environment variable that redirects a program, and no key. A setting on the command line is the user's own decision.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rrm_lm.errors import ConfigError
from rrm_lm.feedback.asking.llm_judge import SERVED
from rrm_lm.options import option

KEYS = ("judge_key_env", "rollout_key_env")  # environment variables with a server's API key
FLAGS_ONLY = ("allow_code", *KEYS)
# Other variables may run code (OMP_TOOL_LIBRARIES, NCCL_NET_PLUGIN and WANDB__EXECUTABLE do) or redirect downloads and
# uploads (HF_ENDPOINT, WANDB_BASE_URL, proxies). So whole names are listed: a prefix would let these in.
_HARMLESS = """
    CUBLAS_WORKSPACE_CONFIG CUDA_DEVICE_ORDER CUDA_LAUNCH_BLOCKING CUDA_VISIBLE_DEVICES
    HF_DATASETS_OFFLINE HF_HUB_DISABLE_PROGRESS_BARS HF_HUB_DISABLE_TELEMETRY HF_HUB_OFFLINE
    MKL_NUM_THREADS NCCL_DEBUG NCCL_IB_DISABLE NCCL_P2P_DISABLE OMP_NUM_THREADS OPENBLAS_NUM_THREADS
    PYTORCH_ALLOC_CONF PYTORCH_CUDA_ALLOC_CONF TOKENIZERS_PARALLELISM TRACKIO_PROJECT TRANSFORMERS_OFFLINE
    TRANSFORMERS_VERBOSITY WANDB_DISABLED WANDB_MODE WANDB_NAME WANDB_NOTES WANDB_PROJECT WANDB_RUN_GROUP WANDB_SILENT
    WANDB_TAGS
"""
HARMLESS = frozenset(_HARMLESS.split())


@dataclass
class CodeArguments:
    """What the settings file may do."""

    allow_code: bool = option(
        False,
        "Let the file of --config run code and set any environment variable. Only on the command line. Settings that "
        "are given on the command line, such as --gold file.py:function, do not need it.",
    )


def runs_code(key: str, value: Any) -> bool:
    """Whether a setting with this value imports a file or module, or runs code from the Hub."""
    texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    if key == "trust_remote_code":
        return bool(value)
    if key in ("domain", "reward_function"):
        return any(":" in text for text in texts)
    if key in ("gold", "overseer"):  # an existing file holds requests, even with a colon in its name
        own = [text for text in texts if not (key == "overseer" and text.startswith(SERVED))]
        return any(":" in text and not Path(text).expanduser().is_file() for text in own)
    return key == "attn_implementation" and any("/" in text for text in texts)  # compiled code from the Hub


def check_setting(key: str, value: Any, where: str, *, given: Collection[str], allow_code: bool) -> None:
    """Refuse a setting of a file that needs permission.

    `where`: the file and line; `given`: settings on the command line, which override the file. Raises ConfigError: the
    setting is not permitted.
    """
    if key in given:
        return
    if key in FLAGS_ONLY and value:
        raise ConfigError(
            f"The settings file sets `{key}`, which is only allowed on the command line",
            where=where,
            expected=f"--{key} on the command line",
            remedy="remove it from the file, and pass the flag if you mean it",
        )
    if not allow_code and runs_code(key, value):
        raise ConfigError(
            f"The settings file would run code: `{key}` is {value!r}",
            where=where,
            expected="--allow_code on the command line",
            remedy=f"read the code; if you trust it, pass --allow_code, or --{key} itself on the command line",
        )


def check_environment(variables: Mapping[str, Any], where: str, *, allow_code: bool) -> None:
    """Refuse variables of a file's `env:` mapping that are not known to be harmless. Raises ConfigError: the command
    line does not allow them.
    """
    others = [name for name in map(str, variables) if name not in HARMLESS]
    if others and not allow_code:
        raise ConfigError(
            f"The settings file sets the environment variable {', '.join(others)} in `env`",
            where=where,
            expected="--allow_code on the command line: it could run code or redirect data",
            remedy="if you trust the file, pass --allow_code; or set the variable in your shell",
        )
