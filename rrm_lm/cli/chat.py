"""`rrm-lm chat`: chat with a policy in the terminal."""

from __future__ import annotations

from rrm_lm.options import require
from rrm_lm.settings.policies import ChatArguments

EXAMPLES = """\
rrm-lm chat smollm2-135m                              (the embedded model)
rrm-lm chat outputs/sft --temperature 0               (the most likely tokens)
rrm-lm chat outputs/sft/merged --system "Answer in one sentence." --seed 1
echo "How long does rice keep?" | rrm-lm chat outputs/sft
"""
COMMON = "model system temperature top_p top_k max_new_tokens seed max_length base_model dtype chat_template_path"


def run(argv: list[str]) -> int:
    """Answer what is typed, or each line of a pipe, until the input ends."""
    from rrm_lm.settings.parser import parse

    kinds = [ChatArguments]
    (args,) = parse(kinds, argv, command="rrm-lm chat MODEL", examples=EXAMPLES, common=COMMON, first="model")
    require(args, model="name one: rrm-lm chat outputs/sft, or rrm-lm chat smollm2-135m")
    from rrm_lm.runs.chat import chat

    return chat(args)
