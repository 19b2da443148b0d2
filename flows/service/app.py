"""The HTTP service: trained models continue and score texts, described at `/openapi.json`, with a page to try them.

An answer is the text that `rnnlm generate` prints with the same settings. Errors are `{"error": {"message", "rule",
"value", "remedy"}}` with a status of 4xx, 503 (busy) or 504 (too long).
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from flows.service.bodies import (
    GENERATE_FIELDS,
    SCORE_FIELDS,
    SETTINGS,
    asked_flag,
    asked_model,
    asked_prefix,
    asked_settings,
    asked_texts,
    read_fields,
)
from flows.service.gate import HEADERS, Gate
from flows.service.limits import Limits, Refused, error_content, status_of
from flows.service.models import ServedModel, continuation, scores
from flows.service.schema import DESCRIPTION, Health, Models, Scores, Text, errors, generate_request, score_request
from flows.service.work import Work
from rnnlm_core.compare import finite
from rnnlm_core.errors import RnnlmError

T = TypeVar("T")
STREAM_TYPE = "application/x-ndjson"
PAGES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/docs": ("reference.html", "text/html"),
    "/reference.js": ("reference.js", "text/javascript"),
}


def create_app(models: Mapping[str, ServedModel], limits: Limits, allowed_hosts: Collection[str] = ()) -> FastAPI:
    """Return the ASGI application.

    Args:
        models: what is served, by the names that requests use.
        limits: what one request, and all together, may ask for.
        allowed_hosts: see `Gate`.
    """
    work = Work(limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(work.close)

    app = FastAPI(
        title="rnnlm", summary="Recurrent language models continue and score texts", description=DESCRIPTION,
        version="1", docs_url=None, redoc_url=None, lifespan=lifespan,
    )  # fmt: skip
    app.state.work = work
    app.add_middleware(Gate, allowed_hosts=allowed_hosts)
    for kind in (RnnlmError, HTTPException, Exception):
        app.add_exception_handler(kind, _answer_error)
    for address, (name, media_type) in PAGES.items():
        content = Path(__file__).with_name(name).read_bytes()
        app.get(address, include_in_schema=False)(_file(content, media_type))

    @app.get("/health", response_model=Health, summary="Whether the service is there, and how busy")
    async def health() -> Response:
        waiting = work.accepted - work.working
        return _json({"status": "ok", "models": list(models), "working": work.working, "waiting": max(0, waiting)})

    @app.get("/models", response_model=Models, summary="What is served, with its figures, and the limits")
    async def list_models() -> Response:
        return _json({"models": [asdict(served.facts) for served in models.values()], "limits": asdict(limits)})

    @app.post(
        "/generate", response_model=Text, responses=errors(404, 408, 413, 415, 422, 503, 504),
        openapi_extra=generate_request(list(models), limits), summary="A model continues a text",
    )  # fmt: skip
    async def generate(request: Request) -> Response:
        deadline = asyncio.get_running_loop().time() + limits.seconds
        content = await read_fields(request, GENERATE_FIELDS, limits, deadline)
        name = asked_model(content, list(models))
        prefix, config, stream = asked_prefix(content), asked_settings(content, limits), asked_flag(content, "stream")
        parts = work.parts(partial(continuation, models[name].saved, prefix, config), deadline)
        if stream:
            first = await _unless_gone(request, anext(parts))
            return _Stream(_lines(first, parts), parts)
        records = await _unless_gone(request, _all(parts))
        settings = {setting: getattr(config, setting) for setting in SETTINGS}
        added = "".join(record.get("piece", "") for record in records)
        read = records[0]["prefix"]
        warnings = [record["warning"] for record in records if "warning" in record]
        return _json({"model": name, "prefix": read, "text": read + added, "warnings": warnings, **settings})

    @app.post(
        "/score", response_model=Scores, responses=errors(404, 408, 413, 415, 422, 503, 504),
        openapi_extra=score_request(list(models)), summary="How well a model foresees texts",
    )  # fmt: skip
    async def score(request: Request) -> Response:
        deadline = asyncio.get_running_loop().time() + limits.seconds
        content = await read_fields(request, SCORE_FIELDS, limits, deadline)
        name, texts = asked_model(content, list(models)), asked_texts(content)
        unknown = asked_settings({key: content[key] for key in ("unknown",) if key in content}, limits).unknown
        parts = work.parts(partial(scores, models[name].saved, texts, unknown), deadline)
        records = await _unless_gone(request, _all(parts))
        found = [asdict(record["score"]) for record in records if "score" in record]
        warnings = [record["warning"] for record in records if "warning" in record]
        return _json({"model": name, "scores": found, "warnings": warnings})

    return app


def _file(content: bytes, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def send_file() -> Response:
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return send_file


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(finite(content), status, headers)


async def _answer_error(request: Request, error: Exception) -> Response:
    """Answer any error in one sentence; what is no fault of the request is raised again by Starlette, and logged."""
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        headers |= error.headers or {}
        error = Refused(
            error.status_code, str(error.detail).lower(), f"{request.method} {request.scope['path']}", "see /docs"
        )
    elif not isinstance(error, RnnlmError):
        what = "the server has a bug"
        return _json(error_content(Refused(500, what, type(error).__name__, "its log says more")), 500, HEADERS)
    if isinstance(error, Refused) and error.retry_after:
        headers["Retry-After"] = str(error.retry_after)
    return _json(error_content(error), status_of(error), headers)


async def _unless_gone(request: Request, answer: Coroutine[Any, Any, T] | Awaitable[T]) -> T:
    """Wait for an answer as long as somebody waits for us; the body of the request must have been read."""

    async def wait() -> T:
        return await answer

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(wait()), asyncio.create_task(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Refused(499, "nobody waits for this any more")
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _all(parts: AsyncGenerator[list[dict[str, Any]], None]) -> list[dict[str, Any]]:
    return [record async for several in parts for record in several]


async def _lines(
    first: list[dict[str, Any]], parts: AsyncGenerator[list[dict[str, Any]], None]
) -> AsyncGenerator[str, None]:
    """Give the records of a stream, one JSON object per line; `done` or an error is the last."""
    yield _records(first)
    try:
        async for several in parts:
            yield _records(several)
    except RnnlmError as error:
        yield _records([error_content(error)])
    else:
        yield _records([{"done": True}])


def _records(records: list[dict[str, Any]]) -> str:
    """Return records as lines; pieces that came together are one."""
    merged: list[dict[str, Any]] = []
    for record in records:
        if "piece" in record and merged and "piece" in merged[-1]:
            merged[-1] = {"piece": merged[-1]["piece"] + record["piece"]}
        else:
            merged.append(record)
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in merged)


class _Stream(StreamingResponse):
    """An answer that grows; however it ends, the work for it ends too."""

    def __init__(self, lines: AsyncGenerator[str, None], parts: AsyncGenerator[Any, None]) -> None:
        super().__init__(lines, media_type=STREAM_TYPE)
        self.lines, self.parts = lines, parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.lines.aclose()
            await self.parts.aclose()
