"""`rrm-lm ask`: fill the store, print the links, and serve the page until Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import socket
from pathlib import Path

import uvicorn

from rrm_lm import locks
from rrm_lm.asking.app import Pages, create_app
from rrm_lm.asking.desk import Desk
from rrm_lm.asking.guard import Guard
from rrm_lm.asking.items import check_unchanged, items_of_responses
from rrm_lm.asking.sampling import Disagreement, Sampler
from rrm_lm.asking.training import Trainer
from rrm_lm.errors import ConfigError
from rrm_lm.feedback.reading.prompts import prompt_sources
from rrm_lm.feedback.records import Prompt
from rrm_lm.feedback.store.events import Item
from rrm_lm.feedback.store.files import Store
from rrm_lm.settings.feedback import AskArguments

logger = logging.getLogger(__name__)


def serve(args: AskArguments) -> int:
    """Serve until Ctrl-C; returns the exit code. Raises RRMError: a file, a model, the store or an address cannot be
    used, or another `rrm-lm ask` uses the store.
    """
    with contextlib.ExitStack() as stack:
        lock = Path(args.store).with_name(Path(args.store).name + ".lock")
        stack.enter_context(locks.lock(lock, what="The store"))
        store = stack.enter_context(Store(args.store, create=True))
        desk = Desk(store, overlap=args.overlap, lease=args.lease, seed=args.seed)
        prompts = fill(store, args)
        if args.reward_model:
            desk.priority = disagreement = Disagreement(args.reward_model)
            disagreement.prepare(list(store.state().items.values()))
        sampler = Sampler(args, prompts) if args.model else None
        desk.expected = len(prompts) * max(1, math.comb(args.samples, 2)) if len(args.people) <= args.overlap else 0
        trainer = Trainer(desk, args) if args.train else None
        listener = stack.enter_context(_listening(args))
        port = listener.getsockname()[1]
        guard = Guard(_hosts(args, port), args.max_body_kb * 1000, args.max_requests, secret_key(args.store))
        pages = Pages(desk, guard, args, sampler, trainer)
        _print_links(pages, args, port)
        for worker in filter(None, (sampler, trainer)):
            worker.start()
        config = uvicorn.Config(
            create_app(pages),
            log_level="warning",
            access_log=False,
            server_header=False,
            # People think for longer than uvicorn's 5 seconds; an answer sent while it closes a connection would fail.
            timeout_keep_alive=300,
            timeout_graceful_shutdown=5,
        )
        try:
            with contextlib.suppress(KeyboardInterrupt):  # uvicorn passes it on after it has answered the open requests
                uvicorn.Server(config).run(sockets=[listener])
            print(f"\n{len(store.state().answers())} answers in {args.store}")
        finally:
            for worker in filter(None, (sampler, trainer)):
                worker.stop()
    return 0


def fill(store: Store, args: AskArguments) -> dict[Prompt, str]:
    """Add the items of the files to the store; returns the prompts that a model is to answer, with their files."""
    items = list(items_of_responses(args))
    prompts = {p: name for name in args.prompts for p in prompt_sources([name], **args.reading(args.split))}
    if not args.model:
        items += [Item(prompt, source=name) for prompt, name in prompts.items()]
    check_unchanged(store.state(), items, prompts, [*args.responses, *args.prompts])
    store.add_items(items)
    if not store.state().items and not (args.model and prompts):
        remedy = "pass --responses FILE, or --prompts FILE and --model NAME"
        raise ConfigError("There is nothing to ask about", where="responses and prompts", remedy=remedy)
    return prompts if args.model else {}


def secret_key(store: str) -> bytes:
    """The key of links and forms, in a file next to the store, so that a copied store lets nobody in."""
    path = Path(store).expanduser()
    path = path.with_name(path.name + ".key")
    if not path.exists():
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
    return path.read_bytes()


def _listening(args: AskArguments) -> socket.socket:
    try:
        return socket.create_server(
            (args.host, args.port), family=socket.AF_INET6 if ":" in args.host else socket.AF_INET
        )
    except OSError as error:
        what = f"The page cannot be served on {args.host}, port {args.port}: {error.strerror or error}"
        raise ConfigError(what, where="host and port", remedy="choose another --port, or 0 for a free one") from error


def _hosts(args: AskArguments, port: int) -> list[str]:
    names = ["127.0.0.1", "localhost", "[::1]", f"[{args.host}]" if ":" in args.host else args.host]
    if args.people:
        names.append(socket.gethostname())
    return [f"{name}:{port}" for name in names] + args.hostname


def _print_links(pages: Pages, args: AskArguments, port: int) -> None:
    """Print the addresses. Only here are tokens shown: no log has them."""
    open_to_all = args.host in ("0.0.0.0", "::")
    name = args.hostname[0] if args.hostname else f"{socket.gethostname() if open_to_all else args.host}:{port}"
    if not args.people:
        print(f"http://{name}/ asks you; http://{name}/overview has the numbers. Ctrl-C stops.", flush=True)
        return
    for token, person in pages.people.items():
        print(f"{person}: http://{name}/join/{token}")
    print(f"you (overview): http://{name}/join/{pages.asker}\nCtrl-C stops.", flush=True)
