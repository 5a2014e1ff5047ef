"""`rrm-lm chat`: a conversation with a policy, with slash commands and responses streamed token by token."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from rrm_lm.api.policy_model import Policy
from rrm_lm.api.start import fitted
from rrm_lm.errors import ConfigError, RRMError
from rrm_lm.evaluation.policies.samples import end_ids
from rrm_lm.feedback.records import Message, Prompt
from rrm_lm.launch.failures import print_error
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.decoding.streaming import Words, stream
from rrm_lm.models.saving.policies import Policy as LoadedPolicy
from rrm_lm.settings.policies import ChatArguments
from rrm_lm.text.chat import ChatFormat

logger = logging.getLogger(__name__)

Draw = Callable[[Tensor], int]

HELP = """\
/reset          clear the conversation (the system message stays)
/system TEXT    set the system message; without text, remove it
/retry          respond to the last message again
/help           show this list
/quit           quit; so do Ctrl-D, and Ctrl-C at the prompt
Ctrl-C stops a response. A line that ends in \\ continues on the next line; // starts a message with a slash."""
# Control characters that a terminal would execute. New lines and tabs are harmless.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def chat(args: ChatArguments) -> int:
    """Load the model and respond until the input ends; returns the exit code. Raises ModelError, CheckpointError: no
    such model, or it is not a policy; ConfigError: invalid settings, or no tokens left for a response.
    """
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p, args.top_k)
    policy = Policy.from_pretrained(
        str(args.model), base_model=args.base_model, revision=args.model_revision, **args.tokenizing(), **args.loading()
    )
    session = ChatSession(policy.loaded, args, token_sampler(sampling, args.seed), interactive=sys.stdin.isatty())
    try:
        return session.run()
    except BrokenPipeError:  # the reader of stdout has exited; discard the buffered output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class ChatSession:
    """One conversation. `draw` chooses a token from (vocabulary,) logits. If a person types (`interactive`), there is a
    prompt, errors do not end the session, and Ctrl-C stops a response. Otherwise each line of stdin is a message, and
    only responses go to stdout.
    """

    def __init__(self, policy: LoadedPolicy, args: ChatArguments, draw: Draw, *, interactive: bool) -> None:
        self.policy, self.args, self.draw, self.interactive = policy, args, draw, interactive
        self.system = args.system
        self.turns: list[Message] = []
        self.max_new_tokens, max_prompt_tokens = _token_budget(policy, args)
        self.chat = ChatFormat(policy.chat.tokenizer, max_prompt_tokens)
        self._warned_of_truncation = False
        self._end_ids = end_ids(self.chat)

    def run(self) -> int:
        if self.interactive:
            kind = "a full model" if self.policy.adapter is None else "an adapter"
            _notify(f"{self.args.model} ({kind}), temperature {self.args.temperature:g}. /help lists the commands.")
        for line in self._messages():
            try:
                if not self._handle(line):
                    break
            except RRMError as error:
                if not self.interactive:
                    raise
                print_error(error)
        return 0

    def _messages(self) -> Iterator[str]:
        """Typed or piped messages, one at a time. Ends normally at Ctrl-D, or at Ctrl-C at the prompt."""
        if self.interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (gives `input` a history and editing keys)
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
            _notify("")

    def _handle(self, line: str) -> bool:
        """Run a command or respond to a message; returns whether the session continues."""
        if line.startswith("/") and not line.startswith("//"):
            return self._command(*line.partition(" ")[::2])
        text = line[1:] if line.startswith("//") else line
        if text.strip():
            self.turns.append(Message("user", text))
            self._respond()
        return True

    def _command(self, name: str, rest: str) -> bool:
        """Run a command; returns whether the session continues."""
        if name == "/reset":
            self.turns.clear()
            _notify("Conversation cleared.")
        elif name == "/system":
            self.system = rest.strip() or None
            _notify("System message set." if self.system else "System message removed.")
        elif name == "/retry":
            if self.turns and self.turns[-1].role == "assistant":
                self.turns.pop()
            if self.turns:
                self._respond()
            else:
                _notify("There is no message to respond to yet.")
        elif name == "/help":
            _notify(HELP)
        elif name in ("/quit", "/exit"):
            return False
        else:
            expected = "one of /reset, /system, /retry, /help, /quit, /exit"
            raise ConfigError(f"There is no command {name}", expected=expected)
        return True

    @property
    def prompt(self) -> Prompt:
        """The conversation so far."""
        head = () if self.system is None else (Message("system", self.system),)
        return (*head, *self.turns)

    def _respond(self) -> None:
        """Stream the response to the last message and keep it; a message that cannot be encoded is dropped."""
        try:
            prompt = self.chat.prompt_ids(self.prompt)
        except RRMError:
            self.turns.pop()
            raise
        limit = self.chat.max_length
        if limit and not self._warned_of_truncation and len(self.chat.uncut.prompt_ids(self.prompt)) > limit:
            self._warned_of_truncation = True
            logger.warning("the conversation is longer than %d tokens; its oldest turns are dropped from now on", limit)
        tokens = stream(
            self.policy.backbone,
            self.policy.adapter,
            prompt,
            self.draw,
            end_ids=self._end_ids,
            max_new_tokens=self.max_new_tokens,
        )
        words = Words(self.chat.tokenizer)
        stopped_by = "the token limit (--max_new_tokens)"
        try:
            for token in tokens:
                if token in self._end_ids:
                    stopped_by = ""
                    break
                _write(words.add(token))
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            stopped_by = "Ctrl-C"
        _write(words.rest() + "\n")
        if stopped_by:
            _notify(f"[stopped by {stopped_by}]")
        if stopped_by == "Ctrl-C" and not words.text.strip():
            self.turns.pop()  # there is no response yet, so drop the message
        else:
            self.turns.append(Message("assistant", words.text))


def token_sampler(sampling: Sampling, seed: int | None) -> Draw:
    """A function that draws a token from (vocabulary,) logits, with its own random generator."""
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)

    def draw(logits: Tensor) -> int:
        uniform = torch.rand(1, dtype=torch.float64, generator=generator)
        return int(sampling.draw(logits[None], uniform.to(logits.device)))

    return draw


def _token_budget(policy: LoadedPolicy, args: ChatArguments) -> tuple[int, int | None]:
    """Maximum tokens of a response, and of the conversation before it. Raises ConfigError: no tokens are left for a
    response.
    """
    longest = fitted(args.max_length, policy.backbone)
    if longest is None:
        return args.max_new_tokens, None
    new = min(args.max_new_tokens, longest // 2)  # at least half is for the conversation
    if new < args.max_new_tokens:
        logger.info("responses have at most %d tokens, because a conversation has at most %d", new, longest)
    if new < 1:
        raise ConfigError(f"A conversation of {longest} tokens leaves none for a response", where="max_length")
    return new, longest - new


def _notify(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _write(text: str) -> None:
    text = _CONTROL.sub("", text)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), end="", flush=True)
