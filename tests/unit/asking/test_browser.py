"""The page in a real Chromium: by keyboard, by mouse, without scripts, on a phone, offline, with two people at once."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `ask` is not installed")
pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")

import uvicorn
from playwright import sync_api

from rrm_lm.asking.app import Pages, create_app
from rrm_lm.asking.desk import Desk
from rrm_lm.asking.guard import Guard
from rrm_lm.asking.run import _hosts, _listening
from rrm_lm.feedback.reading.datasets import load_feedback
from rrm_lm.feedback.records import Message
from rrm_lm.feedback.store.events import Item
from rrm_lm.feedback.store.files import Store
from rrm_lm.settings.feedback import AskArguments
from tests.unit.asking.test_closed_doors import PAYLOADS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = """
no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync
"""
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"),
    # the driver leaves its pipes to the garbage collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=[f"--{flag}" for flag in QUIET.split()])
        yield started
        started.close()


@pytest.fixture
def serve(store: Store) -> Iterator[Callable[..., Pages]]:
    servers: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(**settings: Any) -> Pages:
        """Serve the store; the result's `address` is where."""
        args = AskArguments(store=str(store.path), port=0, **settings)
        listener = _listening(args)
        port = listener.getsockname()[1]
        guard = Guard(_hosts(args, port), args.max_body_kb * 1000, args.max_requests, b"key of the tests")
        pages = Pages(Desk(store, overlap=args.overlap), guard, args)
        pages.address = f"http://127.0.0.1:{port}"  # type: ignore[attr-defined]
        server = uvicorn.Server(uvicorn.Config(create_app(pages), log_level="error", access_log=False))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        servers.append((server, thread))
        return pages

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join()


@pytest.fixture
def visit(browser: Any, serve: Callable[..., Pages]) -> Iterator[Callable[..., Any]]:
    contexts: list[Any] = []
    pages: list[Any] = []

    def open_page(person: str = "", settings: dict[str, Any] | None = None, **options: Any) -> Any:
        """A page of a new browser profile. Errors of scripts and requests to other places fail the test."""
        pages[:] = pages or [serve(**(settings or {}))]
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
        contexts.append(context)
        context.set_default_timeout(8000)
        page = context.new_page()
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("dialog", lambda dialog: page.problems.append(dialog.message) or dialog.dismiss())
        page.on(
            "request", lambda request: request.url.startswith(pages[0].address) or page.problems.append(request.url)
        )
        if person:
            token = next(token for token, name in pages[0].people.items() if name == person)
            page.goto(f"{pages[0].address}/join/{token}")
            page.click("text=Start")
            page.wait_for_selector("main[data-item]:not([data-item=''])")  # keys pressed before it are lost
        else:
            page.goto(pages[0].address)
        return page

    yield open_page
    for context in contexts:
        for page in context.pages:
            assert getattr(page, "problems", []) == []
        context.close()


def answered(page: Any, count: int, total: int = 4) -> None:
    """Wait until the page says how many are answered."""
    sync_api.expect(page.locator(".progress span")).to_contain_text(f"{count} of {total}")


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def test_everything_by_keyboard(visit: Any, store: Store) -> None:
    page = visit()
    press(page, "b", "c")
    page.keyboard.type("Short and right: c 1 2 s.")  # keys are text in a field
    press(page, "Escape", "r", "4", "6", "Enter")
    answered(page, 1)
    press(page, "e")
    page.keyboard.press("Control+a")
    page.keyboard.type("What it should have been.")
    press(page, "Escape", "b", "x", "4", "Enter")
    answered(page, 2)
    press(page, "w")
    page.keyboard.type("My own answer.")
    page.keyboard.press("Control+Enter")
    answered(page, 3)
    press(page, "a", "g", "0", "Enter")
    sync_api.expect(page.locator("h1")).to_contain_text("that was the last one")
    found = load_feedback(str(store.path))
    assert found.sizes() == {"comparisons": 1, "demonstrations": 1, "corrections": 1, "goal_examples": 1}
    best = found.comparisons[0]
    assert (best.margin, best.chosen_critiques, best.chosen_rating) == (2, ("Short and right: c 1 2 s.",), 0.75)
    press(page, "u")
    answered(page, 3)
    assert page.input_value("select[name=goal_0]") == ""  # the item is asked anew, without the withdrawn answer
    press(page, "s")
    sync_api.expect(page.locator("h1")).to_contain_text("that was the last one")
    assert [answer.verdict for _, answer in store.state().answers()][-1] == "skip"


def test_everything_by_mouse(visit: Any, store: Store) -> None:
    page = visit(settings={"criteria": ["true", "short"]})
    page.click(".verdict label:has-text('much better') >> nth=0")
    page.fill("textarea[name=critique_1]", "Not an answer.")
    page.click("label.pick:has-text('short')")
    page.click(".rating >> nth=1 >> label:has-text('2')")
    page.click("button:has-text('Next')")
    answered(page, 1)
    page.click(".card >> nth=0 >> summary:has-text('Edit')")
    page.fill("textarea[name=corrected_0]", "What it should have been.")
    page.select_option("select[name=goal_1]", "unacceptable")
    page.click("label.pick:has-text('tie')")
    page.click("button:has-text('Next')")
    answered(page, 2)
    page.click("summary:has-text('Write the answer')")
    page.fill("textarea[name=demonstration]", "My own answer.")
    page.click("button:has-text('Next')")
    answered(page, 3)
    page.click("button:has-text('Undo')")
    answered(page, 2)
    page.click("button:has-text('Skip')")
    answered(page, 3)
    page.click("text=My answers")
    page.click(".answers a >> nth=-1")
    assert page.input_value("textarea[name=critique_1]") == "Not an answer."
    page.click("label.pick:has-text('both bad')")
    page.click("button:has-text('Save')")
    answered(page, 3)
    answers = [answer for _, answer in store.state().answers()]
    assert sorted(answer.verdict for answer in answers) == ["both_bad", "skip", "tie"]
    assert max(answers, key=lambda answer: answer.verdict == "both_bad").criteria == ("short",)


def test_a_marked_part_is_critiqued(visit: Any, store: Store) -> None:
    page = visit()
    page.dblclick(".card >> nth=1 >> .response", position={"x": 12, "y": 12})
    press(page, "m")
    word = page.input_value("input[name=quote_1]")
    assert word in ("Good", "Poor")
    page.keyboard.type("Why this word?")
    page.keyboard.press("Control+Enter")
    answered(page, 1)
    assert load_feedback(str(store.path)).critiques[0].critique == f'On "{word}": Why this word?'


def test_a_draft_survives_a_reload_and_the_loss_of_the_server(visit: Any, store: Store) -> None:
    page = visit()
    page.fill("textarea[name=critique_0]", "Half a thou")
    press(page, "Escape", "5")
    page.reload()
    assert page.input_value("textarea[name=critique_0]") == "Half a thou" and page.is_checked(
        "input[value='5'][name=verdict]"
    )
    page.context.set_offline(True)
    page.click("button:has-text('Next')")
    sync_api.expect(page.locator("#status")).to_contain_text("Not saved: the server cannot be reached")
    assert not store.state().answers()
    page.context.set_offline(False)
    page.click("button:has-text('Next')")
    answered(page, 1)
    assert page.input_value("textarea[name=critique_0]") == ""  # the draft of the last item is gone
    assert page.evaluate("localStorage.length") == 0


def test_a_refused_answer_says_why_and_keeps_what_was_typed(visit: Any, store: Store) -> None:
    page = visit()
    press(page, "Enter")
    sync_api.expect(page.locator("[role=alert]")).to_contain_text("nothing was answered", ignore_case=True)
    press(page, "4", "Enter")
    answered(page, 1)


def test_two_people_at_once(visit: Any, store: Store) -> None:
    anna = visit("anna", {"people": ["anna", "ben"]})
    ben = visit("ben")
    for _ in range(2):
        assert anna.get_attribute("main", "data-item") != ben.get_attribute("main", "data-item")
        for page in (anna, ben):
            press(page, "1", "Enter")
        for page in (anna, ben):
            sync_api.expect(page.locator("#status")).to_contain_text("Saved")
            page.evaluate("document.getElementById('status').textContent = ''")
    assert len({event.item for event, _ in store.state().answers()}) == 4
    assert len(store.state().answers("anna")) == len(store.state().answers("ben")) == 2


def test_without_scripts(visit: Any, store: Store) -> None:
    page = visit(java_script_enabled=False)
    page.click(".verdict label:has-text('much better') >> nth=0")
    page.fill("textarea[name=critique_0]", "Good.")
    page.click("button:has-text('Next')")
    answered(page, 1)
    page.click("button:has-text('Undo')")
    answered(page, 0)
    assert not store.state().answers()


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_screen(width: int, visit: Any, store: Store) -> None:
    store.add_items([Item((Message("user", "W" * 3000),), ("W" * 3000, "a\n" * 300))])
    page = visit(viewport={"width": width, "height": 740}, color_scheme="dark")
    for address in ["/", f"/item/{[*store.state().items][-1]}", "/overview", "/answers"]:
        page.goto(page.url.split("/", 3)[0] + "//" + page.url.split("/")[2] + address)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, address


def test_every_field_has_a_label(visit: Any) -> None:
    page = visit(settings={"criteria": ["true"]})
    unnamed = page.evaluate(
        """[...document.querySelectorAll('input:not([type=hidden]), textarea, select, button, progress')]
        .filter((e) => ![...(e.labels ?? [])].some((l) => l.textContent.trim()) && !e.ariaLabel && !e.textContent)
        .map((e) => e.outerHTML)"""
    )
    assert unnamed == [] and page.get_attribute("html", "lang") == "en"


def test_hostile_text_does_nothing(visit: Any, store: Store) -> None:
    """No script runs, nothing is fetched, and the page's own structure stays: `visit` fails otherwise."""
    items = [
        Item((Message("user", payload + " ?"),), (payload, payload + ".")) for payload in PAYLOADS if payload.strip()
    ]
    store.add_items(items)
    page = visit()
    start = page.url.rstrip("/")
    for item in items[::7]:
        page.goto(f"{start}/item/{item.id}")
        assert page.locator("form[action='/answer']").count() == 1 and page.locator("script").count() == 1
        assert page.locator(".card").count() == 2
    press(page, "4", "Enter")
    sync_api.expect(page.locator("#status")).to_contain_text("Saved")


def test_the_next_item_comes_at_once(visit: Any) -> None:
    """From key to next item; the target of 100 ms is met on an idle machine, and tests run on busy ones."""
    page = visit()
    times = []
    for count in range(1, 4):
        press(page, "1")
        began = time.perf_counter()
        press(page, "Enter")
        page.wait_for_selector(f".progress span:has-text('{count} of')")
        times.append(time.perf_counter() - began)
    print("seconds to the next item:", [round(t, 3) for t in times])
    assert min(times) < 1.0
