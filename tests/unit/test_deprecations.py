"""A test fails if it uses something deprecated, whether the library warns or logs."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from types import CodeType
from typing import Any

import pytest
from transformers.modeling_outputs import CausalLMOutputWithPast

from tests.deprecations import nothing_deprecated

MESSAGE = "`past_key_values`/`cache_params` are deprecated. Use `cache` instead."


@pytest.mark.parametrize("category", [FutureWarning, DeprecationWarning])
def test_warnings_are_errors(category: type[Warning]) -> None:
    with pytest.raises(category):
        warnings.warn("`this` goes away", category, stacklevel=2)


def test_other_deprecation_warnings_are_errors() -> None:
    with pytest.raises(UserWarning):
        warnings.warn("Of late,\n`this` is Deprecated", stacklevel=2)
    warnings.simplefilter("ignore")
    warnings.warn("`this` is slow", stacklevel=2)


def test_logged_deprecations_are_noticed_in_every_test(deprecations: list[str]) -> None:
    log: Any = logging.getLogger("transformers.utils.generic")
    for _ in range(2):  # transformers logs it once a process
        with pytest.raises(AssertionError, match="Use `cache` instead"), nothing_deprecated():
            log.warning_once(MESSAGE)
        assert deprecations.pop().startswith(f"{log.name}: {MESSAGE}")  # without which this very test would fail
    with nothing_deprecated():
        log.warning("This is slow.")


@pytest.mark.skipif(not hasattr(CausalLMOutputWithPast, "past_key_values"), reason="transformers before 5.24")
def test_the_cache_of_an_output_under_its_old_name(deprecations: list[str]) -> None:
    with pytest.raises(AssertionError, match="past_key_values"), nothing_deprecated():
        CausalLMOutputWithPast(logits=None).past_key_values  # noqa: B018
    deprecations.clear()


def test_deprecations_within_trl_are_ignored(deprecations: list[str]) -> None:
    log = logging.getLogger("transformers.utils.generic")
    inside = compile("log.warning(MESSAGE)", "/lib/site-packages/trl/trainer/sft_trainer.py", "exec")
    handed_on = compile("log.warning(MESSAGE)", "/lib/site-packages/peft/peft_model.py", "exec")

    def called(code: CodeType) -> None:
        exec(code, {"log": log, "MESSAGE": MESSAGE})

    with nothing_deprecated():
        called(inside)
    with pytest.raises(AssertionError), nothing_deprecated():
        called(handed_on)
    deprecations.clear()


def test_warnings_are_errors_in_processes_that_tests_start() -> None:
    code = "import warnings; warnings.warn('`this` goes away', FutureWarning)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "FutureWarning: `this` goes away" in done.stderr
