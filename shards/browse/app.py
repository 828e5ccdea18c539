"""The web application: addresses, headers that keep a page's content where it belongs, and errors as pages."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shards.browse.finding import search
from shards.browse.frame import Page, PageError, Query, Site, render
from shards.browse.media import Stored, respond
from shards.browse.overview import distributions, losses, overview
from shards.browse.sample import sample
from shards.browse.timeline import video
from shards.browse.videos import videos
from shards.html.elements import tag
from shards.search.catalog import CatalogError

HOSTS = ("127.0.0.1", "localhost")  # a page of another name that resolves to this machine is refused
PAGES: dict[str, Callable[[Site, Query], Page]] = {
    "/": overview,
    "/videos": videos,
    "/video": video,
    "/sample/{key}": sample,
    "/losses": losses,
    "/distributions": distributions,
    "/search": search,
}
_HERE = Path(__file__).parent
_HTML = _HERE.parent / "html"
STATIC = {
    "style.css": (_HTML / "style.css", "text/css"),
    "script.js": (_HTML / "script.js", "text/javascript"),
    "browse.css": (_HERE / "browse.css", "text/css"),
    "browse.js": (_HERE / "browse.js", "text/javascript"),
}
_POLICY = (
    "default-src 'none'; img-src 'self' data:; media-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_MAX_ADDRESS = 4096  # characters of a query
logger = logging.getLogger(__name__)


def application(site: Site) -> Starlette:
    """Return the application that serves a dataset; it answers GET and HEAD only, and changes nothing."""
    routes = [Route(path, _page(site, make)) for path, make in PAGES.items()]
    routes += [Route("/media/{key}.{kind}", _media(site)), Route("/static/{name}", _static)]

    def failed(request: Request, error: Exception) -> Response:
        return _error(site, request, error)

    return Starlette(
        routes=routes,
        middleware=[
            Middleware(_Headers),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS), www_redirect=False),
        ],
        exception_handlers={404: failed, 405: failed, PageError: failed, CatalogError: failed, OSError: failed},
    )


class _Headers:
    """Adds the headers of `_HEADERS` to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _page(site: Site, make: Callable[[Site, Query], Page]) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        if len(request.url.query) > _MAX_ADDRESS:
            raise PageError(414, "This address is too long.")
        query = {**request.query_params, **request.path_params}
        return _html(render(site, make(site, query)))

    return answer


def _media(site: Site) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        kind = request.path_params["kind"]
        if kind not in ("jpg", "mp4"):
            raise PageError(404, f"No {kind} of a sample is served.")
        found = site.sample(request.path_params["key"])
        name = site.catalog.shard_of(found)
        split = site.source.dataset.split(found.set_name, found.split)
        shard = next(shard for shard in split.shards if shard.name == name)
        offset, size = (found.jpg_offset, found.jpg_size) if kind == "jpg" else (found.mp4_offset, found.mp4_size)
        if offset < 0 or not 0 < size <= shard.bytes - offset:
            raise PageError(404, f"The index of {name} is damaged: run python -m shards.verify.")
        stored = Stored(shard.path, offset, size, kind, shard.sha256)
        return respond(stored, request.headers)

    return answer


def _static(request: Request) -> Response:
    path, kind = STATIC.get(request.path_params["name"], (None, ""))
    if path is None:
        raise PageError(404, "No such file.")
    return Response(path.read_bytes(), media_type=f"{kind}; charset=utf-8", headers={"cache-control": "no-cache"})


def _error(site: Site, request: Request, error: Exception) -> Response:
    status = getattr(error, "status", None) or getattr(error, "status_code", None) or 500
    if status == 500:
        logger.warning("%s: %s", request.url.path, error)
    message = str(error) if isinstance(error, PageError | CatalogError | OSError) else "There is no such page."
    body = [
        tag("h1", "Not found" if status in (404, 410) else "This cannot be shown"),
        tag("p", message, class_="words"),
    ]
    return _html(render(site, Page(title=str(status), body=body)), status=status)


def _html(content: bytes, *, status: int = 200) -> Response:
    return Response(content, status, {"cache-control": "no-store"}, "text/html; charset=utf-8")
