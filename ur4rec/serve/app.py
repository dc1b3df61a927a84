"""The local server: a few routes over `Answers`, for the browser of this machine alone."""

import json
from collections.abc import Callable
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alternator import AlternatorError
from alternator.checks import one_line
from ur4rec.errors import ConfigurationError
from ur4rec.serve.answers import Answers

MAX_BODY_BYTES = 2**18
"""The size of what the page may send at most."""
_MAX_ERROR = 2000
"""The number of characters of an error at most."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Sent with every answer: only our own script runs, nothing comes from elsewhere, and nobody may frame the page."""
_ASSETS = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}


def build_app(answers: Answers) -> Starlette:
    """The application.

    Requests under any other host name than this machine's are refused, so that no page of the internet reaches it
    through a name that it has pointed here; what is posted must be JSON, which no form of another page can send.
    """
    routes = [Route(path, _asset(*asset)) for path, asset in _ASSETS.items()]
    routes += [
        Route("/schedule.png", _plot(answers)),
        Route("/api/run", _answer(lambda request: answers.run)),
        Route("/api/items", _answer(lambda request: _items(answers, request))),
        Route("/api/users", _answer(lambda request: answers.complete_user(_query(request, "q")))),
        Route("/api/history", _answer(lambda request: answers.history_of(_query(request, "user")))),
        Route("/api/recommend", _recommend(answers), methods=["POST"]),
    ]
    middleware = [
        Middleware(_Headers),
        Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"], www_redirect=False),
    ]
    return Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _explain_status})


class _Headers:
    """Adds `HEADERS` to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _asset(name: str, media_type: str) -> Callable[[Request], Response]:
    content = resources.files(__package__).joinpath("assets", name).read_bytes()
    return lambda request: Response(content, media_type=f"{media_type}; charset=utf-8")


def _plot(answers: Answers) -> Callable[[Request], Response]:
    def plot(request: Request) -> Response:
        if (picture := answers.plot) is None:
            raise HTTPException(404, "the run has no schedule.png yet")
        return Response(picture, media_type="image/png")

    return plot


def _answer(ask: Callable[[Request], Any]) -> Callable[[Request], Response]:
    """A route that answers with JSON; what a user can fix is one line with status 400."""

    def respond(request: Request) -> Response:
        try:
            return JSONResponse(ask(request))
        except AlternatorError as error:
            return _error(400, str(error))

    return respond


def _recommend(answers: Answers) -> Callable[[Request], Any]:
    async def recommend(request: Request) -> Response:
        try:
            asked = await _read_json(request)
            items, user, top = (asked.get(name) for name in ("items", "user", "top"))
            if not isinstance(items, list) or not isinstance(user, str | None) or not isinstance(top, int):
                raise ConfigurationError('a request must be {"items": [index, ...], "user": id or null, "top": number}')
            return JSONResponse(await run_in_threadpool(answers.recommend, items, user, top))
        except AlternatorError as error:
            return _error(400, str(error))

    return recommend


async def _read_json(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "a request must be application/json")
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_BODY_BYTES:
            raise HTTPException(413, f"a request must have at most {MAX_BODY_BYTES} bytes")
    try:
        asked = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"a request must be JSON, got {one_line(str(error), 100)}") from error
    if not isinstance(asked, dict):
        raise ConfigurationError(f"a request must be a JSON object, got {type(asked).__name__}")
    return asked


def _items(answers: Answers, request: Request) -> list[dict[str, Any]]:
    if (indices := request.query_params.get("indices")) is None:
        return answers.complete_item(_query(request, "q"))
    parts = indices.split(",")
    if not all(part.isdecimal() and len(part) < 12 for part in parts):
        raise ConfigurationError("indices must be whole numbers with commas between; take them from a link of the page")
    return answers.items([int(part) for part in parts])


def _query(request: Request, name: str) -> str:
    if (value := request.query_params.get(name)) is None:
        raise ConfigurationError(f"the address must have ?{name}=..., it has not")
    return value


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": one_line(message, _MAX_ERROR)}, status_code=status)


def _explain_status(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail)
