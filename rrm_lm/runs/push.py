"""`rrm-lm push`: check what a model's folder would publish, and upload it to the Hugging Face Hub.

Only files that a user of the model needs are published: weights, tokenizer, settings, results and the model card.
Checkpoints, optimizer states, scores of single examples and the run's own records stay here. A file with a secret or
with a path of this machine is refused, because a published secret cannot be taken back.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from rrm_lm.errors import ConfigError, ModelError
from rrm_lm.evaluation.reports.model_card import plain_card
from rrm_lm.feedback.criteria.records import CRITERIA_FILE
from rrm_lm.models import reward, reward_files
from rrm_lm.models.saving import adapters, policies
from rrm_lm.settings.workflows import PushArguments
from rrm_lm.storage import read_object

logger = logging.getLogger(__name__)

CARD = "README.md"
_WEIGHTS = ("adapter_model*.safetensors", "model*.safetensors")
_VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json")
_PUBLISHED = (
    *_WEIGHTS, "model.safetensors.index.json", adapters.ADAPTER_CONFIG, "config.json", "generation_config.json",
    *_VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "chat_template.jinja",
    policies.SETTINGS_FILE, reward.SETTINGS_FILE, reward_files.EXAMPLES_FILE, CRITERIA_FILE, "results.json", CARD,
)  # fmt: skip

_SECRETS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}",
    "an API key": r"\bsk-(?=[\w-]*\d)[\w-]{20,}|\bAIza[\w-]{35}",
    "an AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|(?i:secret_access_key)\W{1,6}[A-Za-z0-9/+]{40}",
    "a token of GitHub or Slack": r"\bgh[pousr]_[A-Za-z0-9]{36}|\bgithub_pat_\w{22,}|\bxox[abprs]-[\w-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
}
# A path, not the rest of an URL or of a relative path. The third case is a line break in JSON.
_PATH = re.compile(
    r"""(?:(?<![\w.~/-])|(?<=file://)|(?<=\\n))/(?!/)[^\s"'`|<>()\\]+|\b[A-Za-z]:\\{1,2}[^\s"'`|<>\\]+"""
)
_ROOTS = ("home", "Users", "root", "tmp", "mnt", "data", "scratch")  # they also count if this machine lacks them
_SHOWN = 5  # problems in a message


def push(args: PushArguments) -> None:
    """Check and list the files, and upload them in one commit unless `dry_run` is set. Raises ModelError: no model is
    in the folder, or a file must not be published; ConfigError: the Hub cannot be reached, or refuses.
    """
    files, left_out = published(args.folder, args.repo)
    refuse_unsafe(files, args.folder)
    for name, content in files.items():
        print(f"{len(content) if isinstance(content, bytes) else content.stat().st_size:>15,} bytes  {name}")
    if left_out:
        logger.info("not published: %s", ", ".join(left_out))
    if CRITERIA_FILE in files:
        logger.warning("%s quotes the feedback, and is published", CRITERIA_FILE)
    if args.dry_run:
        logger.info("dry run: nothing was sent to %s", args.repo)
        return
    print(_upload(args, files))


def published(folder: Path, repo: str) -> tuple[dict[str, Path | bytes], list[str]]:
    """What is published of a folder: the files by name, with the card as bytes, which names `repo`; and the names of
    what stays here. Raises ModelError: there are no weights, or the backbone is a folder.
    """
    names = sorted(path.name for path in folder.glob("*") if not path.name.startswith("."))
    files = {name: folder / name for name in names if any(fnmatch(name, pattern) for pattern in _PUBLISHED)}
    if not any(fnmatch(name, pattern) for name in files for pattern in _WEIGHTS):
        raise ModelError(
            "There is no model to publish",
            where=str(folder),
            expected="an adapter (adapter_model.safetensors) or a merged checkpoint (model.safetensors)",
            remedy="name the output_dir of rrm-lm reward, sft or policy, or its folder merged",
        )
    base = str(read_object(folder / adapters.ADAPTER_CONFIG).get("base_model_name_or_path") or "")
    if base and Path(base).is_dir():
        what = f"The backbone of this adapter is a folder, {base}, so others cannot load it"
        remedy = "push the merged checkpoint (--merge true), or train on a model of the Hub"
        raise ModelError(what, where=str(folder / adapters.ADAPTER_CONFIG), expected="a Hub name", remedy=remedy)
    card = _card(folder, repo, base).encode()
    return {CARD: card, **{name: path for name, path in files.items() if name != CARD}}, sorted({*names} - {*files})


def _card(folder: Path, repo: str, base: str) -> str:
    """The card of the folder, with the repository in place of the folder; a short one if it has none."""
    if not (folder / CARD).is_file():
        own = read_object(folder / policies.SETTINGS_FILE)
        return plain_card(
            repo,
            is_policy=not (folder / reward.SETTINGS_FILE).is_file(),
            is_adapter=(folder / adapters.ADAPTER_CONFIG).is_file(),
            base_model=base or str(own.get("base_model") or ""),
            method=str(own.get("method") or ""),
        )
    text = (folder / CARD).read_text(encoding="utf-8")
    loaded = re.search(r'AutoTokenizer\.from_pretrained\("([^"]+)"\)', text)
    if loaded and (Path(loaded[1]).is_absolute() or Path(loaded[1]).resolve() == folder.resolve()):
        text = re.sub(rf"(?<![\w./-]){re.escape(loaded[1])}(?![\w/-])", repo, text)
    return text


def refuse_unsafe(files: Mapping[str, Path | bytes], folder: Path) -> None:
    """Raise a ModelError if a text holds a secret or an absolute path. Weights are not searched, and vocabularies only
    for secrets, since their tokens may look like paths.
    """
    found = []
    for name, content in files.items():
        if name.endswith((".safetensors", ".model")):
            continue
        text = (content if isinstance(content, bytes) else content.read_bytes()).decode(errors="replace")
        problems = [*_secrets(text), *(() if name in _VOCABULARIES else _paths(text))]
        found += [f"{name}, line {text.count(chr(10), 0, place) + 1}: {what}" for place, what in sorted(problems)]
    if found:
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ModelError(
            f"The folder holds what must not be published: {'; '.join(found[:_SHOWN])}{more}",
            where=str(folder),
            expected="texts without secrets and without paths of this machine",
            remedy="edit these files, or train again with names on the Hub and relative paths",
        )


def _secrets(text: str) -> Iterator[tuple[int, str]]:
    for what, pattern in _SECRETS.items():
        for match in re.finditer(pattern, text):
            yield match.start(), f"{what} ({match[0][:6]}...)"


def _paths(text: str) -> Iterator[tuple[int, str]]:
    for match in _PATH.finditer(text):
        root, _, rest = match[0].removeprefix("/").partition("/")
        if not match[0].startswith("/") or (rest and (root in _ROOTS or Path("/", root).is_dir())):
            yield match.start(), f"a path of this machine ({match[0]})"


def _upload(args: PushArguments, files: Mapping[str, Path | bytes]) -> str:
    """The address of the commit."""
    api = HfApi()
    added = [CommitOperationAdd(name, content) for name, content in files.items()]
    try:
        api.create_repo(args.repo, private=args.private, exist_ok=True)
        return str(api.create_commit(args.repo, added, commit_message=args.commit_message).commit_url)
    except (HfHubHTTPError, httpx2.HTTPError, ConnectionError) as error:  # the last when offline, and from Xet
        raise ConfigError(
            f"The upload failed: {' '.join(str(error).split())}",
            where=f"{args.repo} on {api.endpoint}",
            expected="a reachable Hub, and a token that may write there",
            remedy="log in with `hf auth login`, or set HF_TOKEN; unset HF_HUB_OFFLINE",
        ) from error
