"""`rrm-lm chat`: answers to what is typed or piped in, the commands in between, and ends without a fault."""

from __future__ import annotations

import builtins
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rrm_lm.errors import ConfigError
from rrm_lm.models.decoding.generation import sample
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.saving.policies import PolicySettings, load_policy, save_policy
from rrm_lm.runs import chat as chat_session
from rrm_lm.runs.chat import ChatSession, token_sampler
from rrm_lm.settings.policies import ChatArguments
from tests.smoke.commands import Result, run
from tests.smoke.conftest import Trained
from tests.tiny import CHATML, lora, prompt_of, save_tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]
FEW = ("--max_new_tokens", 6, "--temperature", 0)


@pytest.fixture(scope="module")
def policy(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy whose adapter makes it speak otherwise than its backbone."""
    folder = tmp_path_factory.mktemp("policy")
    backbone = load_policy(tiny).backbone
    torch.manual_seed(5)
    backbone.add_adapter("policy", lora())
    save_policy(backbone, folder, tiny_tokenizer(), PolicySettings(str(tiny)))
    return folder


@pytest.fixture
def piped(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`rrm-lm chat` with some text on stdin."""

    def talk(text: str, model: Path, *words: object) -> Result:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        return run(capsys, "chat", model, *words)

    return talk


def answers(model: Path, *said: str, system: str | None = None, count: int = 6) -> list[str]:
    """What the model answers, message by message, by the code that samples for training."""
    loaded = load_policy(model)
    if loaded.adapter is not None:
        loaded.backbone.model.set_adapter(loaded.adapter)
    turns: list[str] = []
    for text in said:
        turns.append(text)
        ids = loaded.chat.prompt_ids(prompt_of(*turns, system=system))
        [[found]] = sample(
            loaded.backbone.model, [ids], pad_id=0, eos_ids=[2], max_new_tokens=count, temperature=0
        )  # fmt: skip
        turns.append(loaded.chat.tokenizer.decode(found[:-1] if found[-1] == 2 else found))
    return turns[1::2]


def visible(texts: list[str]) -> str:
    """What of some answers reaches the terminal."""
    return "".join(chat_session._CONTROL.sub("", text) + "\n" for text in texts)


# -- answers --------------------------------------------------------------------------------------------------------


def test_each_line_gets_an_answer_and_all_of_them_are_one_conversation(
    piped: Callable[..., Result], policy: Path, tiny: Path
) -> None:
    result = piped("who is it?\n\nwhat sea?\n", policy, *FEW)
    assert result.code == 0, result.err
    assert result.out == visible(answers(policy, "who is it?", "what sea?"))
    assert "you>" not in result.out
    bare = piped("who is it?", tiny, *FEW)  # a base model, and no new line behind the last message
    assert bare.out == visible(answers(tiny, "who is it?"))
    assert bare.out != visible(answers(policy, "who is it?"))


def test_what_the_model_is_told_first(piped: Callable[..., Result], policy: Path) -> None:
    result = piped("who?\n", policy, *FEW, "--system", "be short")
    assert result.out == visible(answers(policy, "who?", system="be short"))
    result = piped("/system be short\nwho?\n/system\n/reset\nwho?\n", policy, *FEW)
    assert result.code == 0, result.err
    told, untold = answers(policy, "who?", system="be short"), answers(policy, "who?")
    assert told != untold and result.out == visible([*told, *untold])


def test_commands(piped: Callable[..., Result], policy: Path) -> None:
    lines = ["/help", "/retry", "who?", "/retry", "/reset", "//slash", "two \\", "lines", "/quit", "never answered"]
    result = piped("\n".join(lines), policy, *FEW)
    assert result.code == 0, result.err
    [who] = answers(policy, "who?")
    assert result.out == visible([who, who, *answers(policy, "/slash", "two \nlines")])
    assert (
        "/retry" in result.err
        and "There is no message to respond to yet." in result.err
        and "Conversation cleared." in result.err
    )


def test_a_seed_gives_the_same_answers_again(piped: Callable[..., Result], policy: Path) -> None:
    words = ("--max_new_tokens", 12, "--temperature", 1.5)
    one, same, other = (piped("who?\n", policy, *words, "--seed", seed).out for seed in (1, 1, 2))
    assert one == same != other
    assert len({piped("who?\n", policy, *words).out for _ in range(3)}) > 1  # without one, other answers each time
    likely = piped("who?\n", policy, "--max_new_tokens", 12, "--temperature", 1.5, "--top_k", 1).out
    assert likely == visible(answers(policy, "who?", count=12))


def test_long_conversations_lose_their_oldest_turns(piped: Callable[..., Result], policy: Path) -> None:
    result = piped("the sea\n" * 8, policy, *FEW, "--max_length", 64)
    assert result.code == 0, result.err
    assert len(result.out.splitlines()) >= 8
    assert result.err.count("the conversation is longer than 58 tokens") == 1


def test_no_more_tokens_than_the_model_has_places_for(piped: Callable[..., Result], policy: Path) -> None:
    result = piped("", policy)
    assert (
        result.code == 0 and "responses have at most 256 tokens, because a conversation has at most 512" in result.err
    )


def test_control_characters_do_not_reach_the_terminal(capsys: Any) -> None:
    chat_session._write("a\x1b[2Jb\tc\n\x07\x9bd\r")
    assert capsys.readouterr().out == "a[2Jb\tc\nd"


# -- faults ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_talked_to(piped: Callable[..., Result], trained: Trained, tmp_path: Path, capsys: Any) -> None:
    assert "scores responses and writes none" in piped("who?\n", trained.folder).error["error"]
    result = piped("who?\n", tmp_path / "gone")
    assert result.code == 2 and str(tmp_path / "gone") in result.error["where"]
    result = run(capsys, "chat")
    assert result.code == 2 and result.error["error"] == "There is no model to talk to"


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--temperature", -1), "temperature is -1"),
        (("--top_p", 0), "top_p is 0"),
        (("--max_new_tokens", 0), "max_new_tokens is 0"),
        (("--max_length", 1), "max_length is 1"),
        (("--temprature", 1), "did you mean `--temperature`?"),
    ],
)
def test_settings_that_make_no_sense(
    words: tuple[object, ...], what: str, piped: Callable[..., Result], policy: Path
) -> None:
    result = piped("who?\n", policy, *words)
    assert result.code == 2 and what in result.error["error"] and result.out == ""


def test_an_unknown_command_in_a_pipe_is_an_error(piped: Callable[..., Result], policy: Path) -> None:
    result = piped("/rest\nwho?\n", policy, *FEW)
    assert result.code == 2 and result.error["error"] == "There is no command /rest"
    assert "/reset" in result.error["expected"] and result.out == ""


# -- a person at the keyboard ---------------------------------------------------------------------------------------


class Keyboard:
    """Lines that somebody types; an exception in their place is what they pressed."""

    def __init__(self, *typed: Any) -> None:
        self.typed: Iterator[Any] = iter([*typed, EOFError()])
        self.prompts: list[str] = []

    def __call__(self, prompt: str = "") -> str:
        self.prompts.append(prompt)
        line = next(self.typed)
        if isinstance(line, BaseException):
            raise line
        return line


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., tuple[ChatSession, str, str]]:
    def talk(model: Path, *lines: Any, draw: Any = None, **settings: Any) -> tuple[ChatSession, str, str]:
        args = ChatArguments(model=str(model), **{"max_new_tokens": 6, "temperature": 0.0, **settings})
        monkeypatch.setattr(builtins, "input", Keyboard(*lines))
        draw = draw or token_sampler(Sampling(args.max_new_tokens, args.temperature), None)
        session = ChatSession(load_policy(model), args, draw, interactive=True)
        capsys.readouterr()
        assert session.run() == 0
        printed = capsys.readouterr()
        return session, printed.out, printed.err

    return talk


def test_the_input_ends(typed: Callable[..., Any], policy: Path) -> None:
    for end in (EOFError(), KeyboardInterrupt(), "/quit", "/exit"):
        session, out, err = typed(policy, "who?", end, "never answered")
        assert out == visible(answers(policy, "who?")) and "/help lists the commands" in err
        assert [turn.role for turn in session.turns] == ["user", "assistant"]


def test_control_c_stops_an_answer_and_no_more(typed: Callable[..., Any], policy: Path) -> None:
    count = 0

    def draw(logits: torch.Tensor) -> int:
        nonlocal count
        count += 1
        if count in (3, 4):  # in the middle of the first answer, and before the second one's first word
            raise KeyboardInterrupt
        return 40 + count

    session, out, err = typed(policy, "who?", "what?", "why?", draw=draw)
    assert err.count("[stopped by Ctrl-C]") == 2 and err.count("[stopped by the token limit") == 1
    assert [turn.content for turn in session.turns if turn.role == "user"] == ["who?", "why?"]
    first = tiny_tokenizer().decode([41, 42])
    assert session.turns[1].content == first and out.startswith(first + "\n")
    assert len(session.turns) == 4


def test_a_fault_does_not_end_the_session(typed: Callable[..., Any], tmp_path: Path) -> None:
    """A template without system messages: said at once, and the next message is answered."""
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + CHATML
    model = save_tiny_model(tmp_path / "strict", tokenizer=tiny_tokenizer(strict))
    session, out, err = typed(model, "/system be short", "who?", "/nonsense", "/system", "what?")
    assert "no system here" in err and "There is no command /nonsense" in err
    assert [turn.content for turn in session.turns if turn.role == "user"] == ["what?"]
    assert out == visible(answers(model, "what?"))


def test_an_empty_answer_is_an_answer(typed: Callable[..., Any], policy: Path) -> None:
    session, out, _ = typed(policy, "who?", draw=lambda logits: 2)
    assert out == "\n" and [turn.content for turn in session.turns] == ["who?", ""]


def test_no_room(policy: Path) -> None:
    loaded = load_policy(policy)
    loaded.backbone.config.max_position_embeddings = 1
    with pytest.raises(ConfigError, match="leaves none for a response"):
        ChatSession(loaded, ChatArguments(model=str(policy)), lambda logits: 2, interactive=False)


# -- the program ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_in_a_pipe_of_the_shell(policy: Path) -> None:
    """As people would use it, and with a reader that goes away: no traceback either way."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    program = f"{sys.executable} -m rrm_lm chat {policy} --max_new_tokens 6 --temperature 0"
    for command, expected in (
        (f"printf 'who?\\n' | {program}", visible(answers(policy, "who?"))),
        (f"yes 'who is it?' | head -n 40 | {program} | true", ""),
    ):
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=240, check=False
        )
        assert done.stdout == expected and "Traceback" not in done.stderr and "Exception" not in done.stderr
