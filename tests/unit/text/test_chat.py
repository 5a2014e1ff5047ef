"""Token ids and what is trained on, asserted token by token."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rrm_lm.errors import DataError, ModelError
from rrm_lm.feedback.records import TOOLS, Message
from rrm_lm.text.chat import ChatFormat, Line
from tests.tiny import CHATML, MERGING, merging_tokenizer, prompt_of, tiny_chat, tiny_tokenizer

TOKENIZER = tiny_tokenizer()

# SmolLM2's own template: ChatML that speaks for itself where there is no system message.
SMOLLM2 = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nthe sea<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ASSISTANT = ["<|im_start|>", "assistant", "Ċ"]


def tokens(ids: Sequence[int]) -> list[str]:
    return TOKENIZER.convert_ids_to_tokens(list(ids))


def user(*words: str) -> list[str]:
    return ["<|im_start|>", "user", "Ċ", *words, "<|im_end|>", "Ċ"]


def only(chat: ChatFormat, response: str, critiques: Sequence[str] = (), prompt: str = "the sea") -> Line:
    ((line,),) = chat.encode(prompt_of(prompt), [response], [critiques]).lines
    return line


# -- plain lines ----------------------------------------------------------------------------------------------------


def test_a_line_token_by_token() -> None:
    chat = tiny_chat()
    line = only(chat, "yes good")
    assert tokens(line.ids) == [*user("the", "Ġsea"), *ASSISTANT, "yes", "Ġgood", "<|im_end|>"]
    assert tokens(line.ids[line.response_start :]) == ["yes", "Ġgood", "<|im_end|>"]
    assert line.reward_at == len(line.ids) - 1 and line.ids[line.reward_at] == chat.end_id == 2
    assert list(line.critique) == []
    assert tokens(chat.prompt_ids(prompt_of("the sea"))) == [*user("the", "Ġsea"), *ASSISTANT]


def test_the_template_of_smollm2() -> None:
    chat = tiny_chat(template=SMOLLM2)
    line = only(chat, "no")
    system = ["<|im_start|>", "system", "Ċ", "the", "Ġsea", "<|im_end|>", "Ċ"]
    assert tokens(line.ids) == [*system, *user("the", "Ġsea"), *ASSISTANT, "no", "<|im_end|>"]
    own = chat.encode(prompt_of("the sea", system="the moon"), ["no"]).lines[0][0]
    assert tokens(own.ids[:6]) == ["<|im_start|>", "system", "Ċ", "the", "Ġmoon", "<|im_end|>"]
    assert tokens(own.ids[7:]) == [*user("the", "Ġsea"), *ASSISTANT, "no", "<|im_end|>"]


def test_several_turns() -> None:
    chat = tiny_chat()
    line = chat.encode(prompt_of("the sea", "no", "who"), ["yes"]).lines[0][0]
    earlier = [*user("the", "Ġsea"), *ASSISTANT, "no", "<|im_end|>", "Ċ"]
    assert tokens(line.ids) == [*earlier, *user("who"), *ASSISTANT, "yes", "<|im_end|>"]
    assert line.response_start == len(line.ids) - 2


def test_white_space_behind_the_end_of_turn_stays_where_it_is_asked_for() -> None:
    line = ChatFormat(TOKENIZER, trim=False).encode(prompt_of("the sea"), ["no"]).lines[0][0]
    assert tokens(line.ids[-3:]) == ["no", "<|im_end|>", "Ċ"]
    assert line.reward_at == len(line.ids) - 1


def test_another_programs_reward_is_read_at_the_last_token_that_is_not_its_pad_token() -> None:
    template = CHATML.replace("'<|im_end|>' + '\n'", "'<|im_end|>'")
    made = tiny_tokenizer(template)
    read = {}
    for pad in (None, 0, made.eos_token_id):
        line = ChatFormat(made, trim=False, pad_id=pad).encode(prompt_of("the sea"), ["no"]).lines[0][0]
        assert tokens(line.ids[-2:]) == ["no", "<|im_end|>"]
        read[pad] = len(line.ids) - line.reward_at
    assert read == {None: 1, 0: 1, made.eos_token_id: 2}
    assert ChatFormat(made, 5, trim=False, pad_id=2).uncut.pad_id == 2


def test_a_beginning_of_sequence_token_of_the_template_is_kept_once() -> None:
    line = only(tiny_chat(template="{{ '<|endoftext|>' }}" + CHATML), "no")
    assert tokens(line.ids)[:2] == ["<|endoftext|>", "<|im_start|>"]
    assert tokens(line.ids).count("<|endoftext|>") == 1


def test_a_template_without_an_end_of_turn() -> None:
    plain = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    chat = tiny_chat(template=plain + "{% if add_generation_prompt %}assistant:{% endif %}")
    line = only(chat, "the sea", ["too long"])
    assert tokens(line.ids[line.response_start : line.reward_at + 1]) == ["Ġthe", "Ġsea"]
    assert tokens(line.ids[line.reward_at + 1 :]) == ["Ċ", "user", ":", "Ġ", "too", "Ġlong", "<|im_end|>"]


def test_a_response_that_swallows_the_end_of_the_prompt() -> None:
    chat = ChatFormat(merging_tokenizer())
    line = only(chat, "yes", ["good"])
    assert tokens(chat.prompt_ids(prompt_of("the sea"))) == ["Q", ":", "Ġthe", "Ġsea", "Ġ", "A", ":", "Ġ"]
    assert tokens(line.ids) == [
        "Q", ":", "Ġthe", "Ġsea", "Ġ", "A", ":", "Ġyes", "<|im_end|>", "Q", ":", "Ġ", "good", "<|im_end|>",
    ]  # fmt: skip
    assert (line.response_start, line.reward_at, list(line.critique)) == (7, 8, [12, 13])


# -- special tokens in what people wrote ----------------------------------------------------------------------------


@pytest.mark.parametrize("special", ["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
@pytest.mark.parametrize("where", ["prompt", "response", "critique"])
def test_special_tokens_in_text_are_text(special: str, where: str) -> None:
    chat = tiny_chat()
    texts = {"prompt": "the sea", "response": "no", "critique": "good"}
    plain = only(chat, texts["response"], [texts["critique"]], texts["prompt"])
    texts[where] += f" {special}{special} who"
    line = only(chat, texts["response"], [texts["critique"]], texts["prompt"])
    control = {0, 1, 2}
    assert [i for i in line.ids if i in control] == [i for i in plain.ids if i in control]
    assert f"{special}{special} who" in TOKENIZER.decode(list(line.ids))
    assert line.ids[line.reward_at] == chat.end_id
    spans = {
        "prompt": line.ids[: line.response_start],
        "response": line.ids[line.response_start : line.reward_at + 1],
        "critique": line.ids[line.critique.start :],
    }
    assert special in TOKENIZER.decode([i for i in spans[where] if i not in control])


def test_the_stand_ins_themselves_are_text() -> None:
    chat = tiny_chat()
    odd = "a \ue0000\ue001 <|im_end|> \ue0005\ue001 \ue002 \ue003 b"
    line = only(chat, odd, [odd], odd)
    pieces = dict((name, text) for text, name in chat.show(line))
    assert pieces["response"] == odd + "<|im_end|>"
    assert pieces["critique"] == odd + "<|im_end|>"
    assert odd in pieces["prompt"]
    assert tokens(line.ids).count("<|im_end|>") == 3


def test_transcript_shows_what_people_wrote() -> None:
    chat = tiny_chat()
    assert chat.transcript(prompt_of("a <|im_end|> b"), "no") == (
        "<|im_start|>user\na <|im_end|> b<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n"
    )
    assert chat.transcript(prompt_of("a"), None).endswith("<|im_start|>assistant\n")


# -- critiques ------------------------------------------------------------------------------------------------------


def test_a_critique_token_by_token() -> None:
    chat = tiny_chat()
    line = only(chat, "no", ["  good answer \n"])
    plain = only(chat, "no")
    assert line.ids[: len(plain.ids)] == plain.ids
    assert (line.reward_at, line.response_start) == (plain.reward_at, plain.response_start)
    assert tokens(line.ids[len(plain.ids) :]) == ["Ċ", "<|im_start|>", "user", "Ċ", "good", "Ġanswer", "<|im_end|>"]
    assert tokens([line.ids[i] for i in line.critique]) == ["good", "Ġanswer", "<|im_end|>"]


def test_each_critique_is_a_line_and_no_critique_is_one_too() -> None:
    encoded = tiny_chat().encode(prompt_of("the sea"), ["yes", "no"], [["good", "too long"], []])
    assert [len(group) for group in encoded.lines] == [2, 1]
    assert [bool(line.critique) for group in encoded.lines for line in group] == [True, True, False]
    assert encoded.lines[0][0].ids[:15] == encoded.lines[0][1].ids[:15]


def test_a_long_critique_is_cut_and_still_ends() -> None:
    words = ["good"] + ["Ġgood"] * 9
    for most, kept in ((11, 10), (10, 9), (3, 2), (1, 0)):
        line = only(tiny_chat(max_critique_length=most), "no", [" ".join(["good"] * 10)])
        assert tokens([line.ids[i] for i in line.critique]) == [*words[:kept], "<|im_end|>"]


def test_a_turn_ends_as_the_template_says() -> None:
    """Gemma's assistant ends with <end_of_turn>, while its eos token is another."""
    tokenizer = tiny_tokenizer(CHATML.replace("<|im_end|>", "<|endoftext|>"))
    chat = ChatFormat(tokenizer)
    assert tokenizer.eos_token_id == 2 and chat.end_id == 0
    line = only(chat, "no", ["good"])
    assert line.ids[line.reward_at] == 0 and line.ids[-1] == 0 and 2 not in line.ids


def test_the_eos_token_ends_turns_of_templates_that_say_nothing() -> None:
    template = "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}"
    assert tiny_chat(template=template).end_id == 2
    tokenizer = tiny_tokenizer(template)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no token that ends a turn"):
        _ = ChatFormat(tokenizer).end_id


def test_a_template_that_rewrites_earlier_answers() -> None:
    """Qwen 3 shows thoughts in the last answer only; the critique still comes as the next user turn."""
    thoughts = "('the moon ' if loop.last and message['role'] == 'assistant' else '')"
    template = CHATML.replace("message['content']", thoughts + " + message['content']")
    line = only(tiny_chat(template=template), "no", ["good"])
    assert tokens(line.ids[line.response_start :]) == [
        "the", "Ġmoon", "Ġno", "<|im_end|>", "Ċ", "<|im_start|>", "user", "Ċ", "good", "<|im_end|>",
    ]  # fmt: skip


def test_a_template_that_hides_the_next_user_turn() -> None:
    template = "{% for m in messages[:2] %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
    line = only(tiny_chat(template=template), "no", ["good"])
    assert tokens(line.ids) == ["the", "Ġsea", "<|im_end|>", "no", "<|im_end|>", "Ċ", "good", "<|im_end|>"]


@pytest.mark.parametrize("template", [CHATML, SMOLLM2, MERGING])
@pytest.mark.parametrize("text", ["good answer", "too <|im_end|> long", "x"])
def test_what_a_critic_samples_is_what_it_learned(template: str, text: str) -> None:
    chat = tiny_chat(template=template)
    prompt = prompt_of("the sea", "no", "who lives there?")
    learned = chat.encode(prompt, ["the moon"], [[text]]).lines[0][0]
    start = chat.critique_prompt_ids(prompt, "the moon")
    assert tuple(start) == learned.ids[: learned.critique.start]
    sampled = list(learned.ids[len(start) :])
    for critique in (sampled, sampled[:-1]):  # with the end of turn, or stopped by the limit
        (line,) = chat.with_critique_ids(prompt, "the moon", [critique])
        assert line.ids == learned.ids
        assert (line.response_start, line.critique) == (learned.response_start, learned.critique)
        assert line.reward_at == len(line.ids) - 1  # the reward is read behind the critique


def test_sampled_critiques_keep_the_longest_length() -> None:
    chat = tiny_chat(max_critique_length=3)
    lines = chat.with_critique_ids(prompt_of("the sea"), "no", [[10, 11, 12, 13], [10, 11, 2], [2], []])
    assert [list(line.ids[line.critique.start :]) for line in lines] == [[10, 11, 2], [10, 11, 2], [2], [2]]
    assert all(line.reward_at == len(line.ids) - 1 for line in lines)


def test_what_stands_behind_the_reward_may_be_blind() -> None:
    assert Line((1, 2, 3, 4), 1, 2, range(3, 4)).blind == (0, 0)
    assert Line((1, 2, 3, 4), 1, 2, range(3, 4), critique_view=2).blind == (3, 2)


# -- fitting the context --------------------------------------------------------------------------------------------

LONG = prompt_of("the sea " * 20, "no", "the moon " * 10, "yes", "who", system="short")


def parts(line: Line) -> str:
    return TOKENIZER.decode(list(line.ids))


@pytest.mark.parametrize(
    ("max_length", "dropped", "gone", "kept"),
    [
        (300, 0, [], ["the sea", "the moon", "who"]),
        (70, 2, ["the sea"], ["the moon", "who"]),
        (40, 4, ["the sea", "the moon"], ["who"]),
    ],
)
def test_the_oldest_turns_go_first(max_length: int, dropped: int, gone: list[str], kept: list[str]) -> None:
    chat = tiny_chat(max_length=max_length)
    encoded = chat.encode(LONG, ["good", "clear answer"])
    assert (encoded.dropped_turns, encoded.cut_tokens, encoded.cut_responses) == (dropped, 0, 0)
    for (line,), response in zip(encoded.lines, ("good", "clear answer"), strict=True):
        text = parts(line)
        assert len(line.ids) <= max_length
        assert text.startswith("<|im_start|>system\nshort<|im_end|>")
        assert text.endswith(f"<|im_start|>assistant\n{response}<|im_end|>")
        assert all(piece in text for piece in kept) and not any(piece in text for piece in gone)
    assert parts(encoded.lines[0][0]).split("good")[0] == parts(encoded.lines[1][0]).split("clear")[0]


def test_turns_go_no_further_than_needed() -> None:
    chat = tiny_chat()
    prompt = prompt_of("the sea", "no", "who")
    exact = max(len(group[0].ids) for group in chat.encode(prompt, ["yes", "yes the moon"]).lines)
    assert tiny_chat(max_length=exact).encode(prompt, ["yes", "yes the moon"]).dropped_turns == 0
    fewer = tiny_chat(max_length=exact - 1).encode(prompt, ["yes", "yes the moon"])
    assert (fewer.dropped_turns, fewer.cut_tokens) == (2, 0)


def test_a_last_turn_that_is_too_long_loses_its_beginning() -> None:
    whole = tiny_chat().encode(prompt_of("the sea " * 20 + "who"), ["yes the moon", "no"], [["good"], []])
    longest = len(whole.lines[0][0].ids) - 6  # without frame and critique
    chat = tiny_chat(max_length=30)
    encoded = chat.encode(prompt_of("the sea " * 20 + "who"), ["yes the moon", "no"], [["good"], []])
    assert (encoded.dropped_turns, encoded.cut_tokens, encoded.cut_responses) == (0, longest - 30, 0)
    (chosen,), (rejected,) = encoded.lines
    assert len(chosen.ids) == 30 + 6 and chosen.reward_at == 29  # a critique comes on top
    for line, before in ((chosen, whole.lines[0][0]), (rejected, whole.lines[1][0])):
        cut = encoded.cut_tokens
        assert line.ids == before.ids[cut:]
        assert line.response_start == before.response_start - cut
        assert line.reward_at == before.reward_at - cut
        assert [i + cut for i in line.critique] == list(before.critique)
    shared = chosen.response_start
    assert chosen.ids[:shared] == rejected.ids[:shared] and shared == rejected.response_start


def test_a_response_longer_than_the_context_keeps_its_end() -> None:
    chat = tiny_chat(max_length=6)
    encoded = chat.encode(prompt_of("the sea"), ["no " * 10 + "clear", "yes"])
    (long,), (short,) = encoded.lines
    assert encoded.cut_responses == 1
    assert tokens(long.ids) == ["Ġno"] * 4 + ["Ġclear", "<|im_end|>"]
    assert (long.response_start, long.reward_at) == (0, 5)
    assert tokens(short.ids) == ["yes", "<|im_end|>"] and short.response_start == 0


def test_prompts_are_fitted_alike() -> None:
    chat = tiny_chat(max_length=40)
    ids = chat.prompt_ids(LONG)
    assert TOKENIZER.decode(ids) == "<|im_start|>system\nshort<|im_end|>\n<|im_start|>user\nwho<|im_end|>\n" + (
        "<|im_start|>assistant\n"
    )
    cut = tiny_chat(max_length=7).prompt_ids(LONG)
    assert cut == ids[-7:]


def test_a_conversation_that_begins_with_the_assistant() -> None:
    prompt = (Message("assistant", "the sea " * 20), Message("user", "who"))
    encoded = tiny_chat(max_length=20).encode(prompt, ["no"])
    assert encoded.dropped_turns in (0, 1) and encoded.lines[0][0].ids[-1] == 2
    assert len(encoded.lines[0][0].ids) <= 20
    longer = (*prompt, Message("assistant", "no"), Message("user", "short"))
    encoded = tiny_chat(max_length=20).encode(longer, ["no"])
    assert encoded.dropped_turns == 3 and "short" in parts(encoded.lines[0][0])


def test_tool_turns_stay_with_their_question() -> None:
    prompt = (*prompt_of("the sea " * 20, "no", "who"), Message("assistant", "yes"), Message("tool", "the moon"))
    encoded = tiny_chat(max_length=60).encode(prompt, ["good"])
    text = parts(encoded.lines[0][0])
    assert encoded.dropped_turns == 2
    assert "the sea" not in text and "who" in text and "tool\nthe moon" in text


# -- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("response", ["", "  \n"])
def test_a_response_without_words(response: str) -> None:
    with pytest.raises(DataError, match="no tokens left"):
        tiny_chat().encode(prompt_of("the sea"), ["yes", response])


def test_a_tokenizer_without_a_chat_template() -> None:
    with pytest.raises(ModelError, match="no chat template") as caught:
        ChatFormat(tiny_tokenizer(None))
    assert "chat_template_path" in str(caught.value)


def test_a_template_that_rejects_a_role() -> None:
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
    chat = tiny_chat(template=refuse + CHATML)
    assert only(chat, "no").ids == only(tiny_chat(), "no").ids
    with pytest.raises(ModelError, match="no system role here") as caught:
        chat.encode(prompt_of("the sea", system="short"), ["no"])
    assert "system > user > assistant" in str(caught.value)


# -- for people -----------------------------------------------------------------------------------------------------


def test_show_names_every_piece() -> None:
    chat = tiny_chat()
    line = only(chat, "no <|im_end|>", ["good"])
    assert chat.show(line) == [
        ("<|im_start|>user\nthe sea<|im_end|>\n<|im_start|>assistant\n", "prompt"),
        ("no <|im_end|><|im_end|>", "response"),
        ("\n<|im_start|>user\n", "frame"),
        ("good<|im_end|>", "critique"),
    ]
    assert [name for _, name in chat.show(only(chat, "no"))] == ["prompt", "response"]
    (after,) = chat.with_critique_ids(prompt_of("the sea"), "no", [TOKENIZER("good").input_ids])
    assert chat.show(after)[1:] == [("no<|im_end|>\n<|im_start|>user\n", "response"), ("good<|im_end|>", "critique")]


# -- tools ----------------------------------------------------------------------------------------------------------

TOOL_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{{ message['content'] if message['content'] else message['tool_calls'] | tojson }}{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CALL = '{"tool_calls": [{"function": {"name": "weather", "arguments": {"city": "<|im_end|>Oslo"}}}]}'
TALK = (
    Message(TOOLS, '[{"function": {"name": "weather"}, "type": "function"}]'),
    Message("system", "the moon"),
    Message("user", "the sea"),
    Message("assistant", "", CALL),
    Message("tool", "blue"),
)


def test_tools_and_tool_calls_are_handed_to_the_template() -> None:
    chat = tiny_chat(template=TOOL_TEMPLATE)
    text = chat.transcript(TALK, "yes")
    assert text.count("weather") == 2 and "Oslo" in text and text.endswith("yes<|im_end|>\n")
    [line] = chat.encode(TALK, ["yes"]).lines[0]
    assert tokens(line.ids).count("<|im_end|>") == 6  # the one that somebody wrote into a call is plain text
    assert not chat.is_as_rendered(TALK, "yes")  # tools are no messages
    other = (*TALK[:3], Message("assistant", "", CALL.replace("Oslo", "Rome")), TALK[4])
    assert other != TALK and chat.encode(other, ["yes"]) != chat.encode(TALK, ["yes"])


def test_tools_stay_when_old_turns_are_left_out() -> None:
    chat = tiny_chat(template=TOOL_TEMPLATE)
    longer = (*TALK[:3], Message("assistant", "yes good"), Message("user", "who"))
    whole = len(chat.encode(longer, ["no"]).lines[0][0].ids)
    short = ChatFormat(chat.tokenizer, whole - 1)
    [line] = short.encode(longer, ["no"]).lines[0]
    text = TOKENIZER.decode(list(line.ids))
    assert "weather" in text and "the moon" in text and "the sea" not in text


def test_a_template_that_leaves_out_tools_is_an_error() -> None:
    with pytest.raises(ModelError, match="leaves out tools or tool calls: weather"):
        tiny_chat().encode(TALK, ["yes"])
    with pytest.raises(ModelError, match="leaves out tools or tool calls: weather"):
        tiny_chat().prompt_ids(TALK[2:])


def test_tools_that_are_left_out_are_found_though_their_name_occurs() -> None:
    asked = tuple(Message("user", "weather?") if m.role == "user" else m for m in TALK)
    with pytest.raises(ModelError, match="leaves out tools or tool calls: weather"):
        tiny_chat().encode(asked, ["yes"])
    assert "weather?" in tiny_chat(template=TOOL_TEMPLATE).transcript(asked, "yes")
