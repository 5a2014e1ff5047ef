"""Lines of responses as they were sampled."""

from __future__ import annotations

from rrm_lm.text.chat import ChatFormat
from tests.tiny import prompt_of, tiny_chat


def test_the_line_is_the_tokens_as_they_are() -> None:
    line = ChatFormat.sampled_line([5, 6, 7], [8, 9])
    assert line.ids == (5, 6, 7, 8, 9)
    assert (line.response_start, line.reward_at) == (3, 4)
    assert not line.critique and line.blind == (0, 0)


def test_a_finished_response_is_the_line_that_its_text_is_encoded_to() -> None:
    chat, prompt = tiny_chat(), prompt_of("who lives in the sea?")
    (encoded,) = chat.encode(prompt, ["the moon is blue"]).lines[0]
    response = encoded.ids[encoded.response_start :]
    assert response[-1] == chat.end_id
    assert chat.sampled_line(chat.prompt_ids(prompt), response) == encoded
