"""A language model on any OpenAI-compatible server as an overseer: compares, always in both orders, and critiques.

Needs the optional package `openai` (`pip install 'rrm_lm[judge]'`). Questions and parsers are in `judge_questions.py`.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from rrm_lm.errors import ConfigError, ModelError
from rrm_lm.feedback.asking import judge_questions
from rrm_lm.feedback.asking.concurrently import ask_all
from rrm_lm.feedback.asking.judge_questions import CRITIQUE_QUESTION, CUT_OFF, EMPTY, REFUSED, VERDICT_QUESTION, fill
from rrm_lm.feedback.asking.overseers import NO_ANSWER, Verdict
from rrm_lm.feedback.records import Prompt
from rrm_lm.options import is_loopback

logger = logging.getLogger(__name__)

SERVED = "llm:"  # prefix of a model's name in settings that also accept other judges
INCONSISTENT = "another verdict in the other order"
TOO_LONG = "too long for the model"
TURNED_DOWN = "turned down by the server"

_OPENAI_KEY = "OPENAI_API_KEY"
_NO_KEY = "none"  # the client requires a key; servers without one ignore it
_NEEDED_HEADERS = frozenset(
    ("host", "connection", "accept", "accept-encoding", "user-agent", "content-type", "content-length")
)
_TOO_LONG_WORDS = ("context", "too long", "too large", "maximum length", "token limit", "max_model_len")
_FILTER_WORDS = ("content_filter", "content filter", "content management policy", "content policy", "safety")


class ServedJudge:
    """A language model on a server with OpenAI's chat completions API (vLLM, llama.cpp, Ollama, ...).

    An overseer (`overseers.Overseer`) and, with `judge`, a judge of pairs. Refusals, unreadable or missing answers and
    verdicts that change with the order are abstentions; `abstentions` counts them by cause. Thread-safe.

    Args:
        model: The server's name for the model.
        base_url: The server's address up to its version, such as http://127.0.0.1:8000/v1. Prompts and responses are
            sent there and nowhere else.
        name: The overseer's name in records and reports; the model's name if empty.
        key_variable: The environment variable with the API key for this server. None: OPENAI_API_KEY for OpenAI's own
            server or one on this machine, no key otherwise. "" sends no key.
        at_once: Maximum number of questions in flight.
        timeout: Seconds to wait for an answer.
        max_retries: Retries, with growing waits, after a timeout, a lost connection, or status 408, 409, 429 or 5xx.
        max_tokens: Longest answer, in tokens. A reasoning model needs thousands.
        patience: Questions in a row that may stay unanswered before this raises the last cause.
        question: The question about two responses: a template for `judge_questions.fill` whose answer `read_verdict`
            parses. `LETTER_QUESTION` is for small models.
        options: More fields for each request, such as {"top_k": 1}. None removes a field, for example
            {"max_tokens": None, "max_completion_tokens": 4000, "temperature": None}.

    Raises:
        ConfigError: `openai` is not installed, the address is invalid, or the key is not set or not a valid header.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        name: str = "",
        key_variable: str | None = None,
        at_once: int = 8,
        timeout: float = 120.0,
        max_retries: int = 5,
        max_tokens: int = 400,
        patience: int = 10,
        question: str = VERDICT_QUESTION,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        for setting, value, least in (
            *(("at_once", at_once, 1), ("max_retries", max_retries, 0)),
            *(("max_tokens", max_tokens, 1), ("patience", patience, 1)),
        ):
            if value < least:
                raise ConfigError(f"{setting} of a judge is {value}", expected=f"at least {least}")
        self.model, self.base_url, self.name = model, checked_address(base_url), name or model
        self.limit = f"a language model, {model}: knows what it was trained on, and can look nothing up"
        self.at_once, self.patience, self.question = at_once, patience, question
        self.request = {"temperature": 0.0, "max_tokens": max_tokens, **(options or {})}
        self.abstentions: Counter[str] = Counter()
        self.usage: Counter[str] = Counter()  # requests, prompt_tokens, completion_tokens
        self._openai = _import_openai()
        # A redirect would send the questions (on the same host also the key) to an address the user did not name.
        http = self._openai.DefaultHttpxClient(base_url=self.base_url, follow_redirects=False)
        self._key = server_key(key_variable, http.base_url)
        if key_variable is None and not _is_trusted(http.base_url):
            http.event_hooks = {"request": [_strip_credentials]}
        self._client = self._openai.OpenAI(
            base_url=self.base_url,
            api_key=self._key or _NO_KEY,
            timeout=timeout,
            max_retries=max_retries,
            http_client=http,
        )
        self._lock, self._lost_in_a_row = threading.Lock(), 0

    def compare(self, prompt: Prompt, responses: Sequence[str]) -> Verdict:
        """Prefer the response that beats all others. Each pair is asked in both orders and must get the same verdict.

        If no response beats all others, the verdict is an abstention if any pair was one, else a tie. Raises
        ConfigError: fewer than two responses; ModelError: as `judge`.
        """
        if len(responses) < 2:
            raise ConfigError(f"{len(responses)} response given to compare", expected="at least two responses")
        beaten: Counter[int] = Counter()
        pairs = list(itertools.combinations(range(len(responses)), 2))
        verdicts = [self._compare_two(prompt, responses[i], responses[j]) for i, j in pairs]
        for pair, verdict in zip(pairs, verdicts, strict=True):
            if verdict.preferred is not None:
                beaten[pair[verdict.preferred]] += 1
        reason = "\n".join(verdict.reason for verdict in verdicts if verdict.reason)
        for best, count in beaten.items():
            if count == len(responses) - 1:
                return Verdict(best, reason=reason)
        abstained = next((verdict.abstained for verdict in verdicts if verdict.abstained), "")
        if abstained:
            self._count(abstained)
        return Verdict(None, reason=reason, abstained=abstained)

    def critique(self, prompt: Prompt, response: str) -> str:
        """One to three sentences about a response; "" if the model wrote none. Raises ModelError as `judge` does."""
        answer, cause, cut_off = self._ask(fill(CRITIQUE_QUESTION, prompt, response))
        critique = ""
        if not cause:
            critique, cause = judge_questions.read_critique(answer, cut_off=cut_off)
        if cause:
            self._count(f"critique: {cause}")
        return critique

    def edit(self, prompt: Prompt, response: str, statement: str) -> str:
        """The response rewritten so that it does what a criterion's statement says; "" if the model wrote none. Raises
        ModelError as `judge` does.
        """
        answer, cause, cut_off = self._ask(fill(judge_questions.edit_question(statement), prompt, response))
        text, cause = ("", cause or CUT_OFF) if cause or cut_off else judge_questions.read_edit(answer)
        if cause:
            self._count(f"edit: {cause}")
        return text

    def judge(self, questions: Sequence[tuple[Prompt, str, str]]) -> list[float | None]:
        """For each prompt with two responses, asked in this order only: 1 if the first is better, 0 if the second is,
        1/2 for a tie, None for an abstention. Raises ModelError if the server cannot be reached, does not know the
        model, rejects the key, or left `patience` questions in a row unanswered.
        """
        verdicts = ask_all(lambda question: self._verdict(*question), questions, at_once=self.at_once)
        for verdict in verdicts:
            if verdict.abstained:
                self._count(verdict.abstained)
        return [
            None if verdict.abstained else 0.5 if verdict.preferred is None else 1.0 - verdict.preferred
            for verdict in verdicts
        ]

    def _compare_two(self, prompt: Prompt, one: str, other: str) -> Verdict:
        if one == other:
            return Verdict(None)
        first = self._verdict(prompt, one, other)
        if first.abstained:
            return first  # the pair does not count, so skip the other order
        second = self._verdict(prompt, other, one)
        if second.abstained:
            return second
        again = None if second.preferred is None else 1 - second.preferred
        return first if first.preferred == again else Verdict(None, reason=first.reason, abstained=INCONSISTENT)

    def _verdict(self, prompt: Prompt, first: str, second: str) -> Verdict:
        answer, cause, cut_off = self._ask(fill(self.question, prompt, first, second))
        if cause or cut_off:  # the verdict is on the last line, which is cut off
            return Verdict(None, reason=answer, abstained=cause or CUT_OFF)
        return judge_questions.read_verdict(answer)

    def _ask(self, question: str) -> tuple[str, str, bool]:
        """(answer, cause if there is no answer or "", whether it ran out of tokens)."""
        request = {key: value for key, value in self.request.items() if value is not None}
        messages: list[Any] = [{"role": "user", "content": question}]
        try:
            reply = self._client.chat.completions.create(model=self.model, messages=messages, extra_body=request)
        except self._openai.APITimeoutError as error:
            return "", self._lost(NO_ANSWER, error), False
        except self._openai.APIConnectionError as error:
            raise self._unusable("The server cannot be reached", error, "start it, or check the address") from None
        except self._openai.APIStatusError as error:
            return "", self._lost(self._cause(error), error), False
        except (self._openai.OpenAIError, ValueError) as error:  # an invalid API response
            return "", self._lost(NO_ANSWER, error), False
        return self._read(reply)

    def _read(self, reply: Any) -> tuple[str, str, bool]:
        try:
            choice = reply.choices[0]
            refusal, content = getattr(choice.message, "refusal", None), choice.message.content
        except (AttributeError, IndexError, TypeError):
            return "", self._lost(NO_ANSWER, f"a reply without choices: {str(reply)[:200]}"), False
        with self._lock:
            self._lost_in_a_row = 0
            self.usage["requests"] += 1
            for kind in ("prompt_tokens", "completion_tokens"):
                self.usage[kind] += getattr(reply.usage, kind, None) or 0
        if refusal or choice.finish_reason == "content_filter":
            return "", REFUSED, False
        cut_off = choice.finish_reason == "length"
        return content or "", "" if content or cut_off else EMPTY, cut_off

    def _cause(self, error: Any) -> str:
        """The cause of an abstention for an HTTP status. Raises ModelError if the status would be the same for every
        other question.
        """
        status, said = error.status_code, str(error).lower()
        if status in (401, 403):
            remedy = "put a valid key for this server into an environment variable and name it with --judge_key_env"
            raise self._unusable("The server rejects the API key", error, remedy) from None
        if 300 <= status < 400:
            target = error.response.headers.get("location", "an unnamed address")
            remedy = "if you trust that server, pass its address as base_url"
            raise self._unusable(f"The server redirects to {target}, which is not followed", error, remedy) from None
        if status == 404:
            remedy = "check the model's name and the end of the address, which is often /v1"
            raise self._unusable(f"The server does not know the model {self.model!r}", error, remedy) from None
        if status in (408, 409, 429) or status >= 500:
            return NO_ANSWER
        if any(word in said for word in _FILTER_WORDS):
            return REFUSED
        return TOO_LONG if status == 413 or any(word in said for word in _TOO_LONG_WORDS) else TURNED_DOWN

    def _lost(self, cause: str, error: Any) -> str:
        """Count an unanswered question and return the cause of its abstention. Raises ModelError if `patience`
        questions in a row were unanswered.
        """
        if cause in (REFUSED, TOO_LONG):
            return cause
        with self._lock:
            self._lost_in_a_row += 1
            lost = self._lost_in_a_row
        logger.info("%s gave no answer: %s", self.name, self._said(error))
        if lost >= self.patience:
            remedy = "check the server and its log; a restarted collection resumes from its saved answers"
            raise self._unusable(f"{lost} questions in a row got no answer", error, remedy)
        return cause

    def _unusable(self, what: str, error: Any, remedy: str) -> ModelError:
        return ModelError(f"{what} ({self._said(error)})", where=f"{self.model} at {self.base_url}", remedy=remedy)

    def _said(self, error: Any) -> str:
        """An error's message on one line, without the API key, which some servers repeat."""
        said = " ".join(str(error).split())[:500] or type(error).__name__
        return said.replace(self._key, "[key]") if self._key else said

    def _count(self, cause: str) -> None:
        with self._lock:
            self.abstentions[cause] += 1


def _import_openai() -> Any:
    try:
        import openai
    except ImportError:
        what = "A judge on a server needs the package openai, which is not installed"
        raise ConfigError(what, remedy="pip install 'rrm_lm[judge]'") from None
    return openai


def checked_address(base_url: str, setting: str = "base_url") -> str:
    """The address, checked. Raises ConfigError, which names the setting, if it is not an address, or contains a user
    name, a password or a query, which logs would show.
    """
    try:
        parts = urlsplit(base_url)
        found = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        found = found and base_url.isprintable() and not set(base_url) & set(" \\")  # parsers disagree on these
        secret = "@" in parts.netloc or bool(parts.query)
    except ValueError:
        found = secret = False
    if secret or not found:
        raise ConfigError(
            "The server's address contains a password or a query"
            if secret
            else f"{base_url!r} is not the address of a server",
            where=setting,
            expected="for example http://127.0.0.1:8000/v1",
            remedy="pass the key in an environment variable" if secret else "",
        )
    return base_url


def _is_trusted(url: Any) -> bool:
    """Whether an address, as parsed by the client, is OpenAI's own or on this machine."""
    return is_loopback(url.host) or (url.scheme, url.host, url.port) == ("https", "api.openai.com", None)


def _strip_credentials(request: Any) -> None:
    """Remove unneeded headers: the client adds some that identify the user's OpenAI account."""
    for name in {name.lower() for name in request.headers} - _NEEDED_HEADERS:
        del request.headers[name]


def server_key(variable: str | None, url: Any, setting: str = "judge_key_env") -> str:
    """The API key in an environment variable, for the server at `url` (an address as the client parses it), or "" for
    the variable "". `setting` named the variable. Raises ConfigError if the named variable is not set or holds
    characters that no key has. The key is not shown.
    """
    name = _OPENAI_KEY if variable is None else variable
    key = os.environ.get(name, "").strip()
    if variable is None and not _is_trusted(url):
        if key:
            logger.warning(
                "the key in %s is not sent to %s, which is neither OpenAI's server nor on this machine; if it is meant "
                "for that server, pass --judge_key_env %s",
                *(name, url.host, name),
            )
        return ""
    if variable and not key:
        what = "The environment variable for the API key is not set"
        raise ConfigError(what, where=f"{setting}: {variable}", remedy=f"set {variable}, or name another variable")
    if not all("!" <= character <= "~" for character in key):
        what = "The API key contains whitespace or a character that is not ASCII"
        raise ConfigError(what, where=f"environment variable {name}", expected="only the key")
    if key and url.scheme == "http" and not _is_trusted(url):
        logger.warning("the API key in %s is sent to %s without encryption", name, url.host)
    return key
