"""The addresses of the page."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException

from rrm_lm.asking import forms, text
from rrm_lm.asking.desk import Desk
from rrm_lm.asking.guard import HEADERS, Guard
from rrm_lm.asking.overview import in_words, overview_numbers, parts_of
from rrm_lm.asking.sampling import Sampler
from rrm_lm.asking.training import Trainer
from rrm_lm.errors import CheckpointError, DataError
from rrm_lm.feedback.criteria.records import read_criteria
from rrm_lm.feedback.store.events import Item
from rrm_lm.feedback.store.transfer import export
from rrm_lm.settings.feedback import AskArguments

PAGES = files("rrm_lm.asking") / "pages"
STATIC = {"ask.js": "text/javascript", "ask.css": "text/css"}
ASKER = "asker"


class Pages:
    """One running server: its desk, its rules, and what people may see."""

    def __init__(
        self,
        desk: Desk,
        guard: Guard,
        args: AskArguments,
        sampler: Sampler | None = None,
        trainer: Trainer | None = None,
    ) -> None:
        self.desk, self.guard, self.args, self.sampler, self.trainer = desk, guard, args, sampler, trainer
        self.people = {guard.token(f"person {name}"): name for name in args.everybody}
        self.asker = guard.token(ASKER)
        guard.members = set(self.people)
        self.instructions = text.markdown(args.instructions_text)
        named = [read_criteria(name) if name.endswith(".yaml") else [name] for name in args.criteria]
        self.criteria = [getattr(criterion, "name", criterion) for found in named for criterion in found]
        loader = jinja2.FunctionLoader(lambda name: (PAGES / name).read_text("utf-8"))
        self.jinja = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
        self.jinja.filters |= {
            "visible": text.visible,
            "clean": text.clean,
            "marked": text.marked,
            "with_quotes": text.with_quotes,
        }

    def person(self, request: Request) -> str:
        """Who asks for a page. Raises HTTPException: nobody who is invited."""
        name = self.people.get(request.cookies.get("person", ""))
        if name is None and not self.args.people:
            name = self.args.everybody[0]
        if name is None:
            raise HTTPException(401, "open your invitation link first; it was printed when the page was started")
        return name

    def is_asker(self, request: Request) -> bool:
        sent = request.cookies.get("asker", "")
        return not self.args.people or secrets.compare_digest(sent.encode(), self.asker.encode())

    def render(self, request: Request, name: str, status: int = 200, **values: Any) -> HTMLResponse:
        try:
            person = self.person(request)
        except HTTPException:
            person = ""
        secret = self.guard.token(f"form {person}")
        common = {"person": person, "asker": self.is_asker(request), "keys": self.args.key_map, "secret": secret}
        common["guided"] = bool(self.instructions)
        made = self.jinja.get_template(f"{name}.html.j2").render(**common, request_id=secrets.token_hex(8), **values)
        return HTMLResponse(made, status)

    def message(self, request: Request, title: str, *lines: str, status: int = 200, **values: Any) -> HTMLResponse:
        return self.render(request, "message", status, title=title, lines=lines, **values)

    def ask(
        self,
        request: Request,
        item: Item,
        *,
        fields: Mapping[str, str] | None = None,
        problem: str = "",
        status: int = 200,
        shown: Sequence[int] = (),
    ) -> HTMLResponse:
        """The page of one item, filled with the person's answer, if there is one, or with the `fields` of a form whose
        responses had the order `shown`.
        """
        person = self.person(request)
        self.desk.keep(person, item.id)
        shown, answer = shown or self.desk.order(person, item), self.desk.state.answer(person, item.id)
        done, total, seconds = self.desk.progress(person)
        left = ""
        if seconds is not None and done < total:
            left = f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.0f} min"
        return self.render(
            request,
            "ask",
            status,
            item=item,
            responses=[{"text": item.responses[place], "notes": item.notes[place]} for place in shown],
            shown=" ".join(map(str, shown)),
            fields={**forms.fill_form(answer, shown), **(fields or {})},
            criteria=self.criteria,
            changing=answer is not None,
            problem=problem,
            done=done,
            total=total,
            left=left,
        )

    def next(self, request: Request) -> HTMLResponse:
        """The next item, or why no item is left."""
        person = self.person(request)
        if self.instructions and "start" not in request.query_params and not self.desk.state.answers(person):
            return self.guide(request)
        item = self.desk.next_item(person)
        if item is not None:
            return self.ask(request, item)
        if self.sampler is not None and self.sampler.error:
            return self.message(request, "The model stopped answering", self.sampler.error)
        if self.sampler is not None and self.sampler.is_working:
            return self.message(
                request, "The model is writing", "The next answers will be here in a moment.", wait=True
            )
        if self.args.policy_config and self.trainer is not None and self.trainer.is_running:
            line = "All of its answers are judged. What you said trains it now, and then it answers again."
            return self.message(request, "The model is learning", line, wait=True)
        done = bool(self.desk.state.answers(person))
        return self.message(
            request, "Thank you, that was the last one" if done else "There is nothing to answer now",
            "All answers are saved.", undo=done,
        )  # fmt: skip

    def guide(self, request: Request) -> HTMLResponse:
        lines, link = ["Your answers train a model. You can undo and change all of them."], ("/?start", "Start")
        title = f"Hello {self.person(request)}" if self.args.people else "Hello"
        return self.message(request, title, *lines, instructions=self.instructions, link=link)

    def item(self, name: str) -> Item:
        found = self.desk.state.items.get(name)
        if found is None:
            raise HTTPException(404, "there is no such item")
        return found

    async def answer(self, request: Request) -> Response:
        """Take an answer, and go to the next item."""
        person = self.person(request)
        fields = await self.guard.form(request, person)
        item = self.item(fields.get("item", ""))
        shown = self.desk.order(person, item)
        try:
            if "shown" in fields:  # it differs if the page is from before a restart with another --seed
                shown = forms.shown_order(fields["shown"], item)
            answer = forms.read_answer(fields, item, shown)
            await run_in_threadpool(self.desk.take, person, item, answer, fields.get("request", ""))
        except DataError as error:
            problem = error.what[:1].upper() + error.what[1:]
            return self.ask(request, item, fields=fields, problem=f"Not saved: {problem}.", status=422, shown=shown)
        except CheckpointError as error:
            return self.ask(request, item, fields=fields, problem=f"Not saved: {error}", status=507, shown=shown)
        if request.headers.get("x-next") == "page":  # from ask.js, which thus waits for one reply instead of two
            return await run_in_threadpool(self.next, request)
        return RedirectResponse("/", 303)

    async def undo(self, request: Request) -> Response:
        person = self.person(request)
        fields = await self.guard.form(request, person)
        item = await run_in_threadpool(self.desk.undo, person, fields.get("request", ""))
        return RedirectResponse("/" if item is None else f"/item/{item}", 303)

    def join(self, request: Request, token: str) -> Response:
        """Let a person in who has a link, and greet them."""
        cookie = "asker" if token == self.asker else "person"
        if cookie == "person" and token not in self.people:
            raise HTTPException(404, "this link is not an invitation of this page")
        # The cookie is not sent with a redirection from another site, so a page comes first.
        request.cookies[cookie] = token
        line, link = "This link shows you the overview, in this browser.", ("/overview", "Overview")
        page = self.guide(request) if cookie == "person" else self.message(request, "Hello", line, link=link)
        page.set_cookie(cookie, token, max_age=90 * 86400, httponly=True, samesite="strict")
        return page

    def change(self, request: Request, name: str) -> Response:
        """The page of one item, to change an answer."""
        return self.ask(request, self.item(name))

    def answers(self, request: Request) -> Response:
        state, person = self.desk.state, self.person(request)
        rows = [
            {
                "item": event.item,
                "time": event.time,
                "what": in_words(parts_of(answer)),
                "prompt": _short(state.items[event.item]),
            }
            for event, answer in reversed(state.answers(person))
            if event.item in state.items
        ]
        return self.render(request, "answers", rows=rows)

    def overview(self, request: Request) -> Response:
        self.refuse_others(request)
        numbers = overview_numbers(self.desk, self.trainer)
        return self.render(request, "overview", **numbers, sampling=self.sampler.error if self.sampler else "")

    def refuse_others(self, request: Request) -> None:
        if not self.is_asker(request):
            raise HTTPException(403, "this page is for the person who asks; their link was printed at the start")

    def export(self, request: Request, format: str) -> Response:
        self.refuse_others(request)
        if format not in ("trl", "argilla"):
            raise HTTPException(404, "there is no such format")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "file"
            export(self.desk.state, file, format)
            content = file.read_bytes()
        name = {"trl": "pairs.jsonl", "argilla": "argilla.json"}[format]
        more = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type="application/octet-stream", headers=more)


def create_app(pages: Pages) -> FastAPI:
    """The application. All pages are HTML; there is no other interface to find."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.middleware("http")
    async def guarded(request: Request, call_next: Callable[[Request], Any]) -> Response:
        refused = pages.guard.refusal(request)
        found = Response(refused[1], refused[0], media_type="text/plain") if refused else await call_next(request)
        found.headers.update(HEADERS)
        return found

    @app.exception_handler(StarletteHTTPException)
    async def failed(request: Request, error: StarletteHTTPException) -> Response:
        return pages.message(
            request, "That did not work", str(error.detail), status=error.status_code, link=("/", "Back")
        )

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in STATIC:
            raise HTTPException(404, "there is no such file")
        return Response((PAGES / name).read_bytes(), media_type=STATIC[name])

    app.get("/favicon.ico")(lambda: Response(status_code=204))
    app.get("/")(pages.next)
    app.get("/item/{name}")(pages.change)
    app.get("/join/{token}")(pages.join)
    app.get("/answers")(pages.answers)
    app.get("/instructions")(pages.guide)
    app.get("/overview")(pages.overview)
    app.get("/export/{format}")(pages.export)
    app.post("/answer")(pages.answer)
    app.post("/undo")(pages.undo)
    return app


def _short(item: Item) -> str:
    prompt = item.prompt[-1].content if item.prompt else item.responses[0]
    return prompt if len(prompt) <= 100 else prompt[:99] + "…"
