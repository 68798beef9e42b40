"""Who may talk to the page, and how much they may send: everything else is refused before the page sees it.

A web page of another site, open in the user's browser, can send requests to 127.0.0.1. It is known by its Origin, by
Sec-Fetch-Site, or, after DNS rebinding, by the foreign name in Host.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import socket
import traceback
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MB = 1024**2
UPLOAD = "/gradio_api/upload"
MAX_BODY_MB = 1  # settings and names of files; photos are uploaded
PATIENCE = 30.0  # seconds without a further piece of a body
LINGER = 2.0  # seconds for the rest of a refused body, so that its sender gets to read the answer
LOOPBACK = ("localhost", "127.0.0.1", "::1")
EVERYWHERE = ("0.0.0.0", "::")


class Guard:
    """An ASGI application around another: 403 for foreign names and sites, 413 for large bodies, 408 for stalled ones.

    host: where the page listens.  allow_hosts: NAME or NAME:PORT of further names, as of a reverse proxy.
    make_room: called in a thread before each upload.
    Own names are localhost, 127.0.0.1, [::1], `host` and the address at which the connection came in, all with the
    page's port; and the computer's own name where the page listens at all addresses.
    """

    def __init__(
        self,
        app: App,
        host: str,
        allow_hosts: Sequence[str] = (),
        max_upload_mb: int = 20,
        make_room: Callable[[], None] | None = None,
    ) -> None:
        self.app, self.max_upload_mb, self.make_room = app, max_upload_mb, make_room
        self.own = {*LOOPBACK, canonical(host)}
        if canonical(host) in EVERYWHERE:
            computer = socket.gethostname().lower()
            self.own |= {computer, f"{computer.removesuffix('.local')}.local"}
        self.allowed = {split_host(name, "allow_hosts") for name in allow_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        reason = self.foreign(scope)
        if scope["type"] == "websocket":
            if reason:
                await send({"type": "websocket.close", "code": 1008, "reason": reason[:120]})
            else:
                await self.app(scope, receive, send)
        elif reason:
            await refuse(scope, receive, send, 403, reason)
        else:
            await self.bounded(scope, receive, send)

    def foreign(self, scope: Scope) -> str | None:
        """Why a request is not of this page, as a sentence; None where it is."""
        hosts, origins = values(scope, b"host"), values(scope, b"origin")
        if len(hosts) != 1 or not self.is_own(hosts[0], "http", scope):
            name = ", ".join(hosts)[:100] or "none"
            return (
                f"Host: {name} is not a name of this page. Open the address that `secvit app` printed; "
                "further names are allowed at its start: secvit app --allow_hosts NAME:PORT"
            )
        for origin in origins:
            scheme, _, name = origin.partition("://")
            if len(origins) > 1 or not self.is_own(name, scheme, scope):
                return f"Origin: {origin[:100]} is another site; only this page itself may send requests to it"
        site = values(scope, b"sec-fetch-site")
        link = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        link = link and values(scope, b"sec-fetch-dest") == ["document"]
        if set(site) - {"same-origin", "none"} and not link:
            return f"Sec-Fetch-Site: {site[0][:100]}; only this page itself may send requests to it"
        return None

    def is_own(self, text: str, scheme: str, scope: Scope) -> bool:
        """Whether "name:port" is one of the page's names."""
        address, page_port = scope.get("server") or ("", None)
        try:
            name, port = split_host(text)
        except ValueError:
            return False
        if (name in self.own or name == canonical(address)) and scheme == "http" and (port or 80) == page_port:
            return True
        usual = port in (None, page_port, 80, 443)
        return scheme in ("http", "https") and (
            (name, port) in self.allowed or (usual and (name, None) in self.allowed)
        )

    async def bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, with no more of the body than the limit, and no longer pauses in it than `PATIENCE`."""
        upload = scope["path"].rstrip("/") == UPLOAD
        if upload:
            limit = (self.max_upload_mb + MAX_BODY_MB) * MB  # the file, and what multipart puts around it
            large = f"more than {self.max_upload_mb} MB; choose a smaller file, or start with a larger --max_upload_mb"
        else:
            limit = MAX_BODY_MB * MB
            large = f"a body of more than {MAX_BODY_MB} MB; give settings here, and photos to {UPLOAD}"
        declared = "".join(values(scope, b"content-length")) or "0"
        if len(declared) > 15 or int(declared) > limit:
            await refuse(scope, receive, send, 413, large)
            return
        if upload and self.make_room:
            await asyncio.to_thread(self.make_room)
        await Exchange(scope, receive, send, limit, large).run(self.app)


class Exchange:
    """A request whose body is no larger than a limit in bytes and does not stall, and what the application answers.

    large: the sentence that refuses a larger body.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, limit: int, large: str) -> None:
        self.scope, self.receive, self.send, self.limit, self.large = scope, receive, send, limit, large
        self.taken = 0  # bytes of the body
        self.body_read = self.answered = self.refused = self.failed = False

    async def run(self, app: App) -> None:
        """The application's answer; where it fails before it begins one, a sentence that says so."""
        problem = ""
        try:
            await app(self.scope, self.take, self.answer)
        except Exception as error:
            if self.answered and not self.refused:
                raise
            problem = f" ({type(error).__name__}: {str(error)[:200]})"
            self.failed = True
            last = traceback.extract_tb(error.__traceback__)[-1]
            if not self.refused:  # the message may hold what was sent: to its sender, not to the terminal
                print(f"secvit app: {type(error).__name__} at {last.filename}:{last.lineno}", flush=True)
        if self.failed and not self.refused:
            reason = f"this cannot be answered{problem}; /gradio_api/info says what can be asked"
            await refuse(self.scope, self.receive, self.send, 400, reason, self.body_read)

    async def take(self) -> dict[str, Any]:
        """The next piece of the body, for the application."""
        if self.refused:
            return {"type": "http.disconnect"}
        if self.body_read:
            return await self.receive()
        try:
            message = await asyncio.wait_for(self.receive(), PATIENCE)
        except TimeoutError:
            reason = f"nothing further of the body came for {PATIENCE:.0f} s; send it again"
            return await self.refuse(408, reason, body_read=True)
        self.taken += len(message.get("body", b""))
        self.body_read = not message.get("more_body", False)
        return message if self.taken <= self.limit else await self.refuse(413, self.large, self.body_read)

    async def answer(self, message: dict[str, Any]) -> None:
        """A piece of the application's answer."""
        if message.get("status") == 500 and not is_json(message):  # a stack of calls; the error itself comes next
            self.failed = True
        if not self.refused and not self.failed:
            self.answered = True
            await self.send(message)

    async def refuse(self, status: int, reason: str, body_read: bool) -> dict[str, Any]:
        """Answer with a sentence in the application's place; what the application gets instead of the body."""
        self.refused = True
        if not self.answered:
            await refuse(self.scope, self.receive, self.send, status, reason, body_read)
        return {"type": "http.disconnect"}


async def refuse(scope: Scope, receive: Receive, send: Send, status: int, reason: str, body_read: bool = False) -> None:
    """Answer with a status and a sentence, as JSON where the request is JSON.  body_read: all of its body has come."""
    as_json = is_json(scope)
    body = (json.dumps({"error": reason}) if as_json else reason).encode()
    headers = [
        (b"content-type", b"application/json" if as_json else b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER):
            while not body_read:
                body_read = not (await receive()).get("more_body", False)
    await send({"type": "http.response.body"})


def values(message: dict[str, Any], name: bytes) -> list[str]:
    """All values of a header of a request or an answer."""
    return [value.decode("latin-1") for key, value in message.get("headers", ()) if key.lower() == name]


def is_json(message: dict[str, Any]) -> bool:
    return "".join(values(message, b"content-type")).startswith("application/json")


def split_host(text: str, option: str = "host") -> tuple[str, int | None]:
    """Name and port of "name", "name:port" or "[address]:port"; a ValueError for anything else."""
    parts = re.fullmatch(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?", text.lower())
    if parts is None:
        raise ValueError(f"{option}: {text!r}; give NAME or NAME:PORT, as in my-computer:8080 or [::1]:8080")
    return canonical(parts[1]), int(parts[2]) if parts[2] else None


def canonical(name: str) -> str:
    """A host's name in lower case; an address as Python writes it, without brackets and zone."""
    name = name.lower().strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
