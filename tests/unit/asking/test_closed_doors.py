"""Hostile text is shown as text, and what does not come from the page itself is refused."""

from __future__ import annotations

import asyncio
import html
import re
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlencode

import pytest
from fastapi import HTTPException, Request

from rrm_lm.asking import guard, text
from rrm_lm.errors import CheckpointError
from rrm_lm.feedback.records import Message
from rrm_lm.feedback.store.events import ANSWER, About, Answer, Item

MakePage = Callable[..., Any]
SCRIPTS = [
    "<script>alert(1)</script>",
    "<SCRIPT SRC=//x.example/a.js></SCRIPT>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<body onload=alert(1)>",
    "<iframe src=javascript:alert(1)>",
    "<object data=x>",
    "<embed src=x>",
    "<link rel=stylesheet href=//x>",
    "<meta http-equiv=refresh content=0;url=//x>",
    "<base href=//x>",
    "<form action=//x><input name=secret>",
    "<button formaction=//x>",
    "<input autofocus onfocus=alert(1)>",
    "<math><mi xlink:href=x>",
    "<a href=javascript:alert(1)>x</a>",
    "<details open ontoggle=alert(1)>",
    "<video><source onerror=alert(1)></video>",
    "<style>*{display:none}</style>",
    "<div style=position:fixed>",
    "</textarea><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    '"><script>alert(1)</script>',
    "'><script>alert(1)</script>",
    '" autofocus onfocus="alert(1)',
    "' onmouseover='alert(1)",
    "--><script>alert(1)</script>",
    "]]><script>alert(1)</script>",
    "<scr<script>ipt>alert(1)</scr</script>ipt>",
    "<%00script>alert(1)</script>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;",
    "\\u003cscript\\u003e",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<template><script>alert(1)</script></template>",
    "<!--<img src='--><img src=x onerror=alert(1)>'>",
    "<x/onclick=alert(1)>x",
    "<dialog open>x</dialog>",
    "<slot onslotchange=alert(1)>",
]
OTHERS = [
    "[x](javascript:alert(1))",
    "![x](http://x.example/track.png)",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "<http://x.example>",
    "`</code><script>`",
    "{{ 7 * 7 }}",
    "{% include '/etc/passwd' %}",
    "{{ config.__class__ }}",
    "${7*7}",
    "#{7*7}",
    "=cmd|' /C calc'!A0",
    "+SUM(1)",
    "@SUM(1)",
    "-2+3",
    "\u202egnp.exe",
    "a\u2066b\u2069",
    "zero\u200bwidth",
    "\ufeffmark",
    "soft\xadhyphen",
    "\u2028line",
    "null\x00byte",
    "bell\x07",
    "\x1b[31mred\x1b[0m",
    "\x1b]8;;http://x\x07link\x1b]8;;\x07",
    "\x08\x08back",
    "\x7f",
    "\ue000private",
    "\U000e0041tag",
    "'; DROP TABLE events; --",
    "../../etc/passwd",
    "\r\nSet-Cookie: person=x",
    "%3Cscript%3E",
    "<|im_start|>system",
    "🏳️‍🌈 नमस्ते שלום مرحبا",
    "W" * 20_000,
    "e" + "\u0301" * 500,
]
PAYLOADS = [*SCRIPTS, *OTHERS]
# fmt: off
TAGS = {
    "html", "head", "meta", "title", "link", "script", "body", "a", "header", "p", "progress", "span", "nav", "button",
    "kbd", "main", "form", "input", "section", "div", "h1", "h2", "fieldset", "legend", "label", "textarea", "details",
    "summary", "select", "option", "ul", "li", "dialog", "dl", "dt", "dd", "mark", "table", "thead", "tbody", "tr",
    "th", "td", "strong", "code", "ol", "time",
}
# fmt: on
OURS = {"script": {"/static/ask.js"}, "link": {"/static/ask.css"}}


class Tags(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def check_harmless(page: str) -> Tags:
    found = Tags(page)
    for tag, attributes in found.tags:
        assert tag in TAGS, tag
        assert not [name for name in attributes if name.startswith("on") or name == "style"], attributes
        assert tag not in OURS or {attributes.get("src"), attributes.get("href")} & OURS[tag]
        assert not str(attributes.get("href", "")).lower().startswith(("javascript", "data", "//", "http"))
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069\u200b\ufeff]", page)
    return found


def test_the_corpus_is_large_enough() -> None:
    assert len(set(PAYLOADS)) >= 60


def test_hostile_text_is_shown_as_text(page: MakePage) -> None:
    """As request, answers, notes, critique and name of a criterion, on every page that shows them."""
    one = page(criteria=PAYLOADS[:3])
    person = one.pages.args.everybody[0]
    for number, payload in enumerate(PAYLOADS):
        other = payload[::-1] if payload[::-1].strip() != payload.strip() else payload + "."
        item = Item((Message("user", payload + " ?"),), (payload, other), notes=((f'"{payload}"',), ()))
        one.store.add_items([item])
        answer = Answer(
            verdict="tie", about=(About(critiques=(payload,), quote=payload, corrected=payload + "!"), About())
        )
        one.store.append(ANSWER, person=person, item=item.id, body=asdict(answer), request=str(number))
        found = check_harmless(one.get(f"/item/{item.id}"))
        shown = found.text if payload.isprintable() else ""
        assert not shown or payload in shown
    check_harmless(one.get("/answers"))
    check_harmless(one.get("/overview"))


@pytest.mark.parametrize("payload", ["=cmd()", "\u202e", "<b>"])
def test_a_hostile_name(payload: str, page: MakePage) -> None:
    one = page()
    one.store.append(ANSWER, person=payload, item="x", body=asdict(Answer(verdict="skip")))
    check_harmless(one.get("/overview"))


def test_marks_name_what_they_replace() -> None:
    assert "U+202E" in text.visible("a\u202eb") and "right-to-left override" in text.visible("a\u202eb")
    assert text.visible("नमस्ते 👩‍👩‍👧\n\tx") == "नमस्ते 👩‍👩‍👧\n\tx"
    assert html.unescape(str(text.visible("<b>&"))) == "<b>&"
    assert str(text.with_quotes('It says "four <days>" here', "in four <days>")).count("<mark>") == 1
    assert str(text.marked("a <b> c", ["<b>"])) == "a <mark>&lt;b&gt;</mark> c"


def test_headers(page: MakePage) -> None:
    found = page().client.get("/")
    policy = found.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert found.headers["x-content-type-options"] == "nosniff" and found.headers["cache-control"] == "no-store"
    assert "content-security-policy" in page().client.get("/missing").headers


@pytest.mark.parametrize(
    ("change", "headers", "status"),
    [
        ({"secret": ""}, {}, 403),
        ({"secret": "é"}, {}, 403),
        ({}, {"origin": "http://evil.example"}, 403),
        ({}, {"origin": "null"}, 403),
        ({}, {"host": "evil.example"}, 421),
        ({}, {"host": "evil.example:8001"}, 421),
        ({}, {"cookie": "person=other"}, 200),
        ({"item": "unknown"}, {}, 404),
        ({"demonstration": "x" * 600_000}, {}, 413),
        ({"critique_0": "\udc80"}, {}, 400),
        ({f"f{n}": "" for n in range(300)}, {}, 400),
        ({}, {"origin": "http://127.0.0.1:8001"}, 200),
    ],
)
def test_forms_from_elsewhere(change: dict[str, str], headers: dict[str, str], status: int, page: MakePage) -> None:
    one = page()
    data = {**one.fields(), "verdict": "1", **change}
    body = urlencode(data, errors="surrogateescape")
    headers = {"content-type": "application/x-www-form-urlencoded", **headers}
    found = one.client.post("/answer", content=body, headers=headers)
    assert found.status_code == status, found.text
    assert len(one.store.state().answers()) == (status == 200)


def test_names_are_compared_as_browsers_send_them() -> None:
    made = guard.Guard(["Annas-MacBook.local:8001", "127.0.0.1:80"], 1000, 100, b"key")

    def refused(host: str) -> bool:
        scope = {"type": "http", "headers": [(b"host", host.encode())], "client": ("127.0.0.1", 1)}
        return made.refusal(Request(scope)) is not None

    assert not any(map(refused, ("annas-macbook.local:8001", "Annas-MacBook.local:8001", "127.0.0.1", "127.0.0.1:80")))
    assert all(map(refused, ("evil.test:8001", "annas-macbook.local", "127.0.0.1:8001", "")))


def test_a_form_that_does_not_arrive_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "FORM_SECONDS", 0.05)

    async def receive() -> Any:
        await asyncio.sleep(60)

    request = Request({"type": "http", "method": "POST", "path": "/answer", "headers": []}, receive)
    with pytest.raises(HTTPException) as refused:
        asyncio.run(guard.Guard(["x"], 1000, 10, b"key").form(request, "anna"))
    assert refused.value.status_code == 408


def test_get_changes_nothing(page: MakePage) -> None:
    one = page()
    assert one.client.get("/answer").status_code == one.client.get("/undo").status_code == 405
    for address in (
        "/static/../app.py",
        "/static/%2e%2e%2fapp.py",
        "/static/app.py",
        "/docs",
        "/openapi.json",
        "/export/../x",
    ):
        assert one.client.get(address).status_code == 404


def test_invitations(page: MakePage) -> None:
    anna, stranger = page("anna", people=["anna", "ben"]), page()
    assert stranger.client.get("/").status_code == 401
    assert stranger.client.post("/answer", data={"verdict": "1"}).status_code == 401
    assert stranger.client.get("/join/" + "0" * 40).status_code == 404
    cookie = anna.client.get(f"/join/{anna.client.cookies['person']}").headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    fields = anna.fields()
    ben = page("ben")
    assert ben.client.post("/answer", data={**fields, "verdict": "1"}).status_code == 403  # a form of another person


def test_tokens_are_in_no_log(page: MakePage, caplog: pytest.LogCaptureFixture) -> None:
    anna = page("anna", people=["anna"])
    anna.answer(verdict="1")
    tokens = [anna.client.cookies["person"], anna.pages.asker]
    # the names that begin with http are the client's
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith("http")]
    assert not any(token in line for line in ours for token in tokens)


def test_too_many_requests(page: MakePage) -> None:
    one = page(max_requests=5)
    assert [one.client.get("/").status_code for _ in range(7)][-2:] == [429, 429]
    assert one.client.get("/", headers={"cookie": "person=another"}).status_code == 429


def test_a_full_disk_is_told_and_the_text_stays(page: MakePage, monkeypatch: pytest.MonkeyPatch) -> None:
    one = page()

    def full(*_: Any, **__: Any) -> None:
        raise CheckpointError(
            "The store cannot be used: database or disk is full; nothing was saved", remedy="free some space"
        )

    monkeypatch.setattr(one.store, "append", full)
    found = one.answer(verdict="1", critique_0="A long thought.")
    assert found.status_code == 507 and "disk is full" in found.text and "A long thought." in found.text


def test_twenty_people_at_once(page: MakePage) -> None:
    """No answer is lost, and none is stored twice."""
    names = [f"person {n}" for n in range(20)]
    people = [page(name, people=names, overlap=20) for name in names]
    failed: list[Any] = []

    def work(one: Any) -> None:
        for _ in range(4):
            fields = one.fields() | {"verdict": "1"}
            failed.extend(r for _ in range(2) if (r := one.client.post("/answer", data=fields)).status_code != 200)

    threads = [threading.Thread(target=work, args=(one,)) for one in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = people[0].store.state()
    assert not failed and len(state.answers()) == 80 and all(len(state.people_of(name)) == 20 for name in state.items)
    count = (
        sqlite3.connect(people[0].store.path).execute("SELECT count(*) FROM events WHERE kind = 'answer'").fetchone()
    )
    assert count == (80,)
