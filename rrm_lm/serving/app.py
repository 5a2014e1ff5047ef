"""The application: a route for each dialect, and those for operation."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException

from rrm_lm import __version__
from rrm_lm.api.asks import Scored
from rrm_lm.errors import ModelError
from rrm_lm.serving.dialects import ALL, OWN, Body, Dialect, Refused, Result
from rrm_lm.serving.gate import Gate
from rrm_lm.serving.models import Served, find
from rrm_lm.serving.queue import Busy, Queue
from rrm_lm.settings.serving import ServeArguments


class _Json(JSONResponse):
    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode()  # ASCII, as texts may hold what UTF-8 cannot encode


class _Metrics:
    """What Prometheus reads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        on: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("rrm_lm_requests", "Requests.", ["path", "status"], **on)
        self.responses = Counter("rrm_lm_responses", "Scored responses.", ["outcome"], **on)
        self.seconds = Histogram("rrm_lm_request_seconds", "Time of requests.", ["path"], **on)
        self.waiting = Gauge("rrm_lm_waiting", "Responses that wait.", **on)
        self.batches = Gauge("rrm_lm_batches", "Batches so far.", **on)


def create_app(models: Mapping[str, Served], args: ServeArguments, token: str = "") -> FastAPI:
    """The application for these models. Its queue runs while its lifespan does."""
    metrics = _Metrics()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.queue = Queue(args.max_waiting)
        app.state.running = asyncio.create_task(app.state.queue.run())
        yield
        app.state.running.cancel()
        app.state.queue.close()

    app = FastAPI(title="rrm-lm serve", version=__version__, lifespan=lifespan, default_response_class=_Json)
    app.add_middleware(Gate, token=token, max_body=int(args.max_body_mb * 1e6), timeout=args.body_timeout)
    by_path: dict[str, Dialect] = {}
    for dialect in (one for group in ALL.values() for one in group):
        for path in dialect.paths:
            by_path[path] = dialect
            _add(app, path, dialect, models, args, metrics)
    _add_operations(app, models, metrics)

    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, RequestValidationError):
            wrong = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:3]]
            refused = Refused(422, "; ".join(wrong))
        else:
            assert isinstance(error, HTTPException)
            refused = Refused(error.status_code, str(error.detail))
        return _Json(by_path.get(request.url.path, OWN).error(refused), refused.status)

    app.add_exception_handler(RequestValidationError, refuse)
    app.add_exception_handler(HTTPException, refuse)
    return app


def _add(
    app: FastAPI, path: str, dialect: Dialect, models: Mapping[str, Served], args: ServeArguments, metrics: _Metrics
) -> None:
    """Add a dialect's route."""

    async def answer(body: Body, request: Request) -> Response:
        began = time.monotonic()
        # Clients whose requests name no model can name it in the URL.
        name = request.query_params.get("model", body.get("model"))
        status, reply, headers = await _answer(body, name, request.app.state.queue)
        metrics.requests.labels(path, status).inc()
        metrics.seconds.labels(path).observe(time.monotonic() - began)
        return _Json(reply, status, headers)

    async def _answer(body: Body, name: Any, queue: Queue) -> tuple[int, Any, dict[str, str]]:
        headers: dict[str, str] = {}
        try:
            seconds = body.get("timeout", args.request_timeout)
            if not isinstance(name, str | None) or not isinstance(seconds, int | float) or not seconds > 0:
                raise Refused(422, "`model` is a name, and `timeout` a number of seconds")
            model, asks = find(models, name, anything=dialect.anything), dialect.asks(body)
            if not asks:
                raise Refused(400, "the request has no responses to score")
            async with asyncio.timeout(min(args.request_timeout, seconds)):
                scored = await queue.score(model, asks, dialect.cuts(body))
            results = [Result(how, *one) if isinstance(one, Scored) else Result(how, one) for how, one in scored]
            failed = sum(not isinstance(one.reward, float) for one in results)
            metrics.responses.labels("failed").inc(failed)
            metrics.responses.labels("scored").inc(len(results) - failed)
            return 200, dialect.reply(body, model, results), headers
        except ModelError as error:
            refused = Refused(404, str(error))
        except Busy as error:
            refused, headers = Refused(dialect.busy, str(error)), {"Retry-After": str(error.seconds)}
        except TimeoutError:
            refused = Refused(504, "the rewards were not computed in time")
        except Refused as error:
            refused = error
        return refused.status, dialect.error(refused), headers

    app.post(path, name=path, response_model=None)(answer)


def _add_operations(app: FastAPI, models: Mapping[str, Served], metrics: _Metrics) -> None:
    @app.get("/health")
    @app.get("/{dialect}/health")
    async def health(request: Request) -> Response:
        failed = request.app.state.running.done()
        return _Json({"status": "failed" if failed else "ok"}, 503 if failed else 200)

    @app.get("/v1/models")
    @app.get("/{dialect}/v1/models")
    async def list_models() -> Response:
        data = [
            {"id": one.name, "object": "model", "owned_by": "rrm_lm", "digest": one.digest,
             "max_length": one.chat.max_length}
            for one in models.values()
        ]  # fmt: skip
        return _Json({"object": "list", "data": data})

    @app.get("/metrics")
    async def read_metrics(request: Request) -> Response:
        metrics.waiting.set(request.app.state.queue.waiting)
        metrics.batches.set(request.app.state.queue.batches)
        return PlainTextResponse(generate_latest(metrics.registry))
