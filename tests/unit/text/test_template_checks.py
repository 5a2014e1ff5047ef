"""Rows that a chat template refuses, or whose words it leaves out."""

from __future__ import annotations

import pytest

from rrm_lm.errors import DataError
from rrm_lm.feedback.records import Message, Prompt
from rrm_lm.text.template_checks import TemplateChecks, check_template
from rrm_lm.text.template_words import left_out
from tests.tiny import CHATML, comparison, prompt_of, tiny_chat

DROPS_SYSTEM = CHATML.replace(
    "{{ '<|im_start|>'", "{% if message['role'] == 'system' %}{% continue %}{% endif %}{{ '<|im_start|>'"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}" + CHATML
STRIPS = CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")


def with_system(row: int) -> Prompt:
    return prompt_of(f"who lives in the sea {row}?", system=f"be short {row}")


def checked(template: str, prompts: list[Prompt], chosen: str = "yes", rejected: str = "no") -> TemplateChecks:
    rows = [comparison(p, f"{chosen} {n}", f"{rejected} {n}", row=n) for n, p in enumerate(prompts, 1)]
    return check_template(tiny_chat(template=template), rows)


def test_a_faithful_template() -> None:
    checks = checked(CHATML, [with_system(1), prompt_of("a", "b", "a")])
    assert (checks.problems(), checks.remarks(), checks.checked) == ([], [], 2)
    checks.settle(skip_bad_rows=False)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (DROPS_SYSTEM, "the chat template leaves out system messages: 2 (row 1, 3)"),
        (NO_SYSTEM, "the chat template cannot render this conversation: No system role: 2 (row 1, 3)"),
    ],
)
def test_system_messages_that_are_not_rendered(template: str, problem: str) -> None:
    checks = checked(template, [with_system(1), prompt_of("hi"), with_system(3)])
    assert checks.problems() == [problem]
    assert {origin.row for origin in checks.origins} == {1, 3}
    with pytest.raises(DataError, match="row 1") as error:
        checks.settle(skip_bad_rows=False)
    assert "--fold_system true" in error.value.remedy and "--skip_bad_rows true" in error.value.remedy
    checks.settle(skip_bad_rows=True)
    assert checks.to_dict()["refused"][problem.removeprefix("the chat template ").rpartition(": ")[0]] == {
        "count": 2,
        "first_rows": ["tiny.jsonl, row 1", "tiny.jsonl, row 3"],
    }


@pytest.mark.parametrize(
    ("response", "problem"),
    [
        ("<think>because</think>yes", "leaves out the reasoning of the response"),
        ("<think>because</think>", "leaves out the response"),
    ],
)
def test_a_response_without_its_reasoning(response: str, problem: str) -> None:
    lost = tiny_chat(template=STRIPS).lost(prompt_of("why?"), response)
    assert lost.refused == problem


def test_the_reasoning_of_earlier_turns_is_left_out_by_design() -> None:
    checks = checked(STRIPS, [prompt_of("why?", "<think>because</think>so", "and?")])
    assert checks.problems() == []
    assert checks.remarks() == ["the chat template leaves out the reasoning of earlier assistant turns: 1 (row 1)"]


def test_words_in_another_order_or_form_are_there() -> None:
    """Some templates put the system message before the last user turn, trim, or write tool results as JSON."""
    messages = (Message("system", "be short"), *prompt_of("one", "two", "three"))
    assert left_out(messages, "[INST]one[/INST]two[INST]be short\n\nthree[/INST]") == ("", "", False)
    assert left_out(prompt_of("  a\n\n b "), "[INST]a b[/INST]") == ("", "", False)
    assert left_out((*prompt_of("a"), Message("tool", 'x\n"y"')), 'a "x\\n\\"y\\""') == ("", "", False)


def test_one_of_two_equal_turns() -> None:
    assert left_out(prompt_of("go on", "one", "go on"), "[INST]go on[/INST]one") == (
        "leaves out words of user turns",
        "",
        False,
    )


def test_texts_that_were_rendered_before() -> None:
    rendered = prompt_of("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    rare = checked(CHATML, [rendered, prompt_of("a"), prompt_of("b")])
    assert (rare.problems(), rare.twice.count) == ([], 1)
    assert "row 1" in rare.remarks()[0]
    often = checked(CHATML, [rendered, rendered, prompt_of("b")])
    with pytest.raises(DataError, match="rendered twice: 2"):
        often.settle(skip_bad_rows=True)
