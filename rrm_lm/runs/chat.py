"""A conversation with a policy: what is said, the commands in between, and words that appear as they are drawn."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from rrm_lm.errors import ConfigError, RRMError
from rrm_lm.feedback.records import Message, Prompt
from rrm_lm.launch.failures import print_error
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.decoding.streaming import Words, stream
from rrm_lm.models.pretrained import process_state
from rrm_lm.models.saving.policies import Policy, load_policy
from rrm_lm.settings.policies import ChatArguments
from rrm_lm.text.chat import ChatFormat

logger = logging.getLogger(__name__)

Draw = Callable[[Tensor], int]

HELP = """\
/reset          forget what was said (the system message stays)
/system WORDS   tell the model something before the conversation; without words, take it back
/retry          another answer to the last message
/help           this list
/quit           leave; so do Ctrl-D, and Ctrl-C while nothing is being written
Ctrl-C stops an answer. A line that ends in \\ goes on in the next one; // begins a message with a slash."""
# Control characters, which a model may write and a terminal would obey. New lines and tabs are harmless.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def talk(args: ChatArguments) -> int:
    """Load the model and answer until the input ends; returns the exit code.

    Raises:
        ModelError, CheckpointError: There is no such model, or no policy.
        ConfigError: Settings that make no sense, or no room for an answer.
    """
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p, args.top_k)
    policy = load_policy(
        str(args.model),
        base_model=args.base_model,
        revision=args.model_revision,
        **args.tokenizing(),
        **args.loading(),
    )
    policy.backbone.to(torch.device(process_state().device or "cpu"))
    session = Session(policy, args, drawer(sampling, args.seed), interactive=sys.stdin.isatty())
    try:
        return session.run()
    except BrokenPipeError:  # whoever read the answers has gone; what is still to be flushed goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class Session:
    """One conversation.

    Args:
        policy: Who answers.
        args: How.
        draw: Chooses a token from (vocabulary,) logits.
        interactive: Whether a person types: then there is a prompt, faults do not end the session, and Ctrl-C stops
            an answer. Else each line of stdin is a message, and nothing but answers goes to stdout.
    """

    def __init__(self, policy: Policy, args: ChatArguments, draw: Draw, *, interactive: bool) -> None:
        self.policy, self.args, self.draw, self.interactive = policy, args, draw, interactive
        self.system = args.system
        self.turns: list[Message] = []
        self.new_tokens, room = _room(policy, args)
        self.chat = ChatFormat(policy.chat.tokenizer, room)
        self._whole = ChatFormat(policy.chat.tokenizer)
        self._told_of_room = False
        self._commands: dict[str, Callable[[str], bool]] = {
            "/reset": self._reset,
            "/system": self._set_system,
            "/retry": self._retry,
            "/help": self._help,
            "/quit": lambda _: False,
            "/exit": lambda _: False,
        }

    def run(self) -> int:
        """Answer every message until the input ends or somebody leaves."""
        if self.interactive:
            kind = "the whole model" if self.policy.adapter is None else "an adapter"
            self._note(f"{self.args.model} ({kind}), temperature {self.args.temperature:g}. /help lists the commands.")
        for line in self._messages():
            try:
                if not self._take(line):
                    break
            except RRMError as error:
                if not self.interactive:
                    raise
                print_error(error)
        return 0

    # -- input ----------------------------------------------------------------------------------------------------

    def _messages(self) -> Iterator[str]:
        """What is typed or piped in, message by message. Ends without a fault at Ctrl-D, or Ctrl-C at the prompt."""
        if self.interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (gives `input` a history and keys to edit with)
        parts: list[str] = []
        while True:
            try:
                line = input("... " if parts else "you> ") if self.interactive else next(sys.stdin).rstrip("\n")
            except (EOFError, StopIteration):
                break
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                break
            parts.append(line.removesuffix("\\"))
            if not line.endswith("\\"):
                yield "\n".join(parts)
                parts = []
        if parts:
            yield "\n".join(parts)
        if self.interactive:
            self._note("")

    def _take(self, line: str) -> bool:
        """Obey a command or answer a message; returns whether the session goes on."""
        if line.startswith("/") and not line.startswith("//"):
            name, _, words = line.partition(" ")
            command = self._commands.get(name)
            if command is None:
                raise ConfigError(f"There is no command {name}", expected=f"one of {', '.join(self._commands)}")
            return command(words.strip())
        text = line[1:] if line.startswith("//") else line
        if text.strip():
            self.turns.append(Message("user", text))
            self._answer()
        return True

    # -- commands -------------------------------------------------------------------------------------------------

    def _reset(self, _: str) -> bool:
        self.turns.clear()
        self._note("Forgotten.")
        return True

    def _set_system(self, words: str) -> bool:
        self.system = words or None
        self._note("The model is told so." if words else "The model is told nothing.")
        return True

    def _retry(self, _: str) -> bool:
        if self.turns and self.turns[-1].role == "assistant":
            self.turns.pop()
        if self.turns:
            self._answer()
        else:
            self._note("Nothing has been said yet.")
        return True

    def _help(self, _: str) -> bool:
        self._note(HELP)
        return True

    # -- answers --------------------------------------------------------------------------------------------------

    @property
    def prompt(self) -> Prompt:
        """The conversation so far."""
        head = () if self.system is None else (Message("system", self.system),)
        return (*head, *self.turns)

    def _answer(self) -> None:
        """Write the answer to the last message as it is drawn, and keep it; a message that failed is taken back."""
        try:
            prompt = self.chat.prompt_ids(self.prompt)
        except RRMError:
            self.turns.pop()
            raise
        self._tell_of_room()
        end = self.chat.end_id
        tokens = stream(
            self.policy.backbone,
            self.policy.adapter,
            prompt,
            self.draw,
            end_ids=self._end_ids(end),
            max_new_tokens=self.new_tokens,
        )
        words = Words(self.chat.tokenizer)
        stopped = "the token limit (--max_new_tokens)"
        try:
            for token in tokens:
                if token in self._end_ids(end):
                    stopped = ""
                    break
                _write(words.add(token))
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            stopped = "Ctrl-C"
        _write(words.rest() + "\n")
        if stopped:
            self._note(f"[stopped by {stopped}]")
        if stopped == "Ctrl-C" and not words.text.strip():
            self.turns.pop()  # nothing was said, so the message is as good as never sent
        else:
            self.turns.append(Message("assistant", words.text))

    def _end_ids(self, end: int) -> tuple[int, ...]:
        """The token that ends a turn, and the tokenizer's eos, which ends a text in families where it is another."""
        eos = self.chat.tokenizer.eos_token_id
        return (end,) if eos is None else (end, int(eos))

    def _tell_of_room(self) -> None:
        room = self.chat.max_length
        if room is not None and not self._told_of_room and len(self._whole.prompt_ids(self.prompt)) > room:
            self._told_of_room = True
            logger.warning("the conversation is longer than %d tokens; its oldest turns are left out from now on", room)

    def _note(self, text: str) -> None:
        """A word to the person, beside the conversation."""
        print(text, file=sys.stderr, flush=True)


def drawer(sampling: Sampling, seed: int | None) -> Draw:
    """What chooses a token from (vocabulary,) logits, with a random stream of its own."""
    random = torch.Generator()
    if seed is None:
        random.seed()
    else:
        random.manual_seed(seed)

    def draw(logits: Tensor) -> int:
        uniform = torch.rand(1, dtype=torch.float64, generator=random)
        return int(sampling.draw(logits[None], uniform.to(logits.device)))

    return draw


def _room(policy: Policy, args: ChatArguments) -> tuple[int, int | None]:
    """Tokens that an answer may have, and tokens that are left for the conversation before it.

    Raises:
        ConfigError: Nothing is left.
    """
    context = getattr(policy.backbone.config, "max_position_embeddings", None)
    longest = min((int(n) for n in (context, args.max_length) if n is not None), default=None)
    if longest is None:
        return args.max_new_tokens, None
    new = min(args.max_new_tokens, longest // 2)  # at least half is for what was said before
    if new < args.max_new_tokens:
        logger.info("answers have at most %d tokens: a conversation has %d in all", new, longest)
    if new < 1:
        raise ConfigError(f"A conversation of {longest} tokens has no room for an answer", where="max_length")
    return new, longest - new


def _write(text: str) -> None:
    """Words of the model to stdout at once."""
    text = _CONTROL.sub("", text)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), end="", flush=True)
