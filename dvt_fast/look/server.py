"""The server behind the page: who may ask, what there is to ask for, and where it listens.

It shows local files to whoever may ask, so it listens on this machine alone, and on another address only with a token.
Other sites that the same browser visits must not reach it either: a name that was made to point here (DNS rebinding) is
refused by the Host header, requests from other sites by Sec-Fetch-Site, and the page may load only its own files.
Images are asked for by their number in the list, so no text of a request ever becomes a path.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import InputError
from .model import Shown
from .session import Session

ASSETS = Path(__file__).parent / "assets"
PAGE = "index.html"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Address:
    """Where the server listens. host: an address or a name. token: what has to be known to look; None is nothing."""

    host: str
    port: int
    token: str | None = None

    @property
    def url(self) -> str:
        """What to open in a browser."""
        name = socket.gethostname() if _is_any(self.host) else self.host
        host = f"[{name}]" if ":" in name else name
        return f"http://{host}:{self.port}/" + (f"?token={self.token}" if self.token else "")

    @property
    def cookie(self) -> str:
        """The name of the cookie that keeps the token; browsers do not tell the ports of a host apart by themselves."""
        return f"dvt_fast_look_{self.port}"

    def is_called(self, host: str) -> bool:
        """Whether a Host header means this server, on any port, since ports are forwarded.

        Numbers are no one else's name; of names, only those that this machine has."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        names = {"localhost", "127.0.0.1", "::1", str(_parsed(self.host) or self.host).lower()}
        if not _is_any(self.host):
            return name in names
        own = socket.gethostname().lower()
        return name in names | {own, f"{own}.local"} or _parsed(name) is not None


def is_local(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    address = _parsed(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any that is free. Raises `InputError`: no such address, a port taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--host {host}: not an address of this machine: {reason}") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not to wait for connections of the last run
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        hint = "; give another --port, or --port 0 for any that is free" if port else ""
        raise InputError(f"cannot listen on {host}, port {port}: {error.strerror}{hint}") from None
    return listener


def make_server(app: ASGIApp) -> uvicorn.Server:
    """What answers, as quietly as it can; `should_exit` stops it."""
    config = uvicorn.Config(
        app,
        loop="asyncio",
        lifespan="off",
        ws="none",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Answer until Ctrl-C."""
    with suppress(KeyboardInterrupt):  # which uvicorn raises again after it has stopped
        make_server(app).run(sockets=[listener])


def make_app(session: Session, address: Address) -> ASGIApp:
    """The application: the page, its files, and what it asks for."""

    async def images(request: Request) -> Response:
        return JSONResponse({"images": session.names})

    async def state(request: Request) -> Response:
        try:
            return JSONResponse(session.ask(_index(request), again="again" in request.query_params))
        except IndexError:
            raise HTTPException(404, "no such image") from None

    async def picture(request: Request) -> Response:
        return Response(_shown(session, request).picture, media_type="image/jpeg")

    async def data(request: Request) -> Response:
        return Response(_shown(session, request).data, media_type="application/octet-stream")

    routes = [
        Route("/api/images", images),
        Route("/api/images/{index}", state),
        Route("/api/images/{index}/picture", picture),
        Route("/api/images/{index}/data", data),
    ]
    for file in sorted(path for path in ASSETS.iterdir() if path.suffix in TYPES):
        routes.append(Route("/" if file.name == PAGE else f"/{file.name}", _asset(file)))
    return Guard(Starlette(routes=routes), address)


class Guard:
    """Lets through who may ask, and puts the same headers on every answer."""

    def __init__(self, app: ASGIApp, address: Address):
        self._app, self._address = app, address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        refusal = self._refusal(request)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if refusal is None and "token" in request.query_params and self._address.token:
                    keep = f"{self._address.cookie}={self._address.token}; HttpOnly; SameSite=Strict; Path=/"
                    headers.append("Set-Cookie", keep)
            await send(message)

        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        """The answer to a request that is not let through; None is for one that is."""
        if not self._address.is_called(request.headers.get("host", "")):
            return PlainTextResponse("This server has another name.", 403)
        site = request.headers.get("sec-fetch-site", "none")
        if site not in ("same-origin", "none") and request.url.path != "/":
            return PlainTextResponse("Other sites may not ask this server.", 403)
        if self._address.token and not self._knows_token(request):
            return PlainTextResponse("Open the address that dvt-fast look has printed, with its token.", 403)
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("Only GET.", 405, {"Allow": "GET, HEAD"})
        return None

    def _knows_token(self, request: Request) -> bool:
        """By the cookie, or by the address that was printed."""
        token = (self._address.token or "").encode()
        told = [request.cookies.get(self._address.cookie, ""), request.query_params.get("token", "")]
        return any(secrets.compare_digest(text.encode(errors="replace"), token) for text in told)


def _asset(file: Path) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return Response(content, media_type=TYPES[file.suffix])

    content = file.read_bytes()
    return answer


def _index(request: Request) -> int:
    text = request.path_params["index"]
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise HTTPException(404, "no such image")
    return int(text)


def _shown(session: Session, request: Request) -> Shown:
    shown = session.shown(_index(request))
    if shown is None:
        raise HTTPException(404, "nothing is known of this image")
    return shown


def _is_any(host: str) -> bool:
    """Whether `host` is all addresses of this machine."""
    address = _parsed(host)
    return address is not None and address.is_unspecified


def _parsed(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
