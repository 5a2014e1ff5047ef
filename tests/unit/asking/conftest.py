"""A store with items, and the page on it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `ask` is not installed")

from starlette.testclient import TestClient

from rrm_lm.asking.app import Pages, create_app
from rrm_lm.asking.desk import Desk
from rrm_lm.asking.guard import Guard
from rrm_lm.feedback.records import Message
from rrm_lm.feedback.store.events import Item
from rrm_lm.feedback.store.files import Store
from rrm_lm.settings.feedback import AskArguments

HOST = "127.0.0.1:8001"


def pair(number: int) -> Item:
    return Item((Message("user", f"Question {number}?"),), (f"Good answer {number}.", f"Poor answer {number}."))


class Page:
    """One person's browser without scripts."""

    def __init__(self, pages: Pages, store: Store, person: str = "") -> None:
        self.pages, self.store = pages, store
        self.client = TestClient(create_app(pages), base_url=f"http://{HOST}", follow_redirects=True)
        if person:
            link = next(token for token, name in pages.people.items() if name == person)
            assert self.client.get(f"/join/{link}").status_code == 200

    def get(self, address: str = "/") -> str:
        found = self.client.get(address)
        assert found.status_code == 200, found.text
        return found.text

    def fields(self, address: str = "/", form: str = "/answer") -> dict[str, str]:
        """The hidden fields of a form on a page."""
        part = self.get(address).split(f'action="{form}"')[1].split("</form>")[0]
        return dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', part))

    def answer(self, address: str = "/", **given: str) -> Any:
        return self.client.post("/answer", data={**self.fields(address), **given})

    def undo(self) -> Any:
        return self.client.post("/undo", data=self.fields("/", "/undo"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "feedback.db", create=True) as opened:
        opened.add_items([pair(number) for number in range(4)])
        yield opened


@pytest.fixture
def page(store: Store) -> Callable[..., Page]:
    made: dict[str, Pages] = {}

    def make(person: str = "", **settings: Any) -> Page:
        """A browser on the page; browsers of one test share the server of the first one's settings."""
        if not made:
            args = AskArguments(store=str(store.path), **settings)
            desk = Desk(store, overlap=args.overlap, lease=args.lease, seed=args.seed)
            guard = Guard([HOST], args.max_body_kb * 1000, args.max_requests, b"key of the tests")
            made["pages"] = Pages(desk, guard, args)
        return Page(made["pages"], store, person)

    return make
