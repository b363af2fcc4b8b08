"""What stands before every request: who may ask what, from where, how often, and how much.

Everything is refused that is not let in here by name: a new route needs a signed-in person, a new unsafe one a token
of the page as well, and one under /owner or /api/owner the owner. The rules are those of OWASP's cheat sheets and of
Jupyter Server: an allowlist of hosts against DNS rebinding, Origin and a token against forged requests, no CORS.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any

from tunesmith.feedback.people import People, Person

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PUBLIC = {"/", "/enter", "/join", "/api/sign-in", "/api/join"}
PUBLIC_FOLDER = "/static/"
OWNERS = ("/owner", "/api/owner")
SAFE = {"GET", "HEAD"}
UNSAFE = {"POST", "PUT", "DELETE", "PATCH"}

MOST_BYTES = 256_000
SECONDS_FOR_BODY = 15.0
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Site:
    """Where the page is reached. `hosts` are the Host headers that are answered, `origins` the pages whose requests
    are taken; cookies are Secure where the origins are https. `cookie` differs from port to port, as browsers do not
    tell the ports of a host apart."""

    hosts: frozenset[str]
    origins: frozenset[str]
    cookie: str

    @property
    def is_secure(self) -> bool:
        return all(origin.startswith("https://") for origin in self.origins)

    def set_cookie(self, value: str, seconds: float) -> str:
        secure = "; Secure" if self.is_secure else ""
        return f"{self.cookie}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={int(seconds)}{secure}"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: somebody signed in, or nobody yet. `session` is their cookie, `csrf` what their page must send."""

    person: Person | None
    session: str

    @property
    def csrf(self) -> str:
        return hashlib.sha256(f"page of {self.session}".encode()).hexdigest()


class RefusedError(Exception):
    """A request that goes no further."""

    def __init__(self, status: int, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


class Limiter:
    """So many requests at once, and so many a second from then on, for each key; of the latest keys only."""

    MOST_KEYS = 20_000

    def __init__(self, burst: float, per_second: float) -> None:
        self._burst, self._rate = burst, per_second
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> float:
        """Seconds to wait; 0 when this request is within the limit."""
        now = time.monotonic()
        left, since = self._left.pop(key, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._rate)
        wait = 0.0 if left >= 1 else (1 - left) / self._rate
        self._left[key] = (left if wait else left - 1, now)
        while len(self._left) > self.MOST_KEYS:
            self._left.popitem(last=False)
        return wait


class Guard:
    """An ASGI application around another one."""

    def __init__(self, app: App, people: People, site: Site) -> None:
        self._app, self._people, self._site = app, people, site
        self._entries = Limiter(burst=10, per_second=0.2)  # sign-in and invitations, by address
        self._requests = Limiter(burst=120, per_second=20)  # unsafe ones of anybody signed in, by session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            receive = await self._let_in(scope, headers, receive)
        except RefusedError as refusal:
            return await refuse(scope, send, refusal)
        await self._app(scope, receive, _with_headers(scope, send))

    async def _let_in(self, scope: Scope, headers: Mapping[str, str], receive: Receive) -> Receive:
        """Lets a request through, with who asks in its state, or raises what to answer."""
        method, path = scope["method"], scope["path"]
        self._check_place(method, headers)
        if path.startswith(PUBLIC_FOLDER) and method in SAFE:
            return receive
        caller = await self._find_caller(headers)
        scope.setdefault("state", {})["caller"] = caller
        if path not in PUBLIC:
            _check_person(caller.person, path)
        if method in SAFE:
            return receive
        self._check_rate(scope, path, caller)
        is_ours = hmac.compare_digest(headers.get("x-csrf-token", "").encode(), caller.csrf.encode())
        if not (caller.session and is_ours):
            raise RefusedError(403, "this request did not come from a page that is open here. Reload the page")
        return await _read_body(headers, receive)

    def _check_place(self, method: str, headers: Mapping[str, str]) -> None:
        if headers.get("host", "").lower() not in self._site.hosts:
            raise RefusedError(421, "this server does not answer to that name. Start it with --public-url")
        if method not in SAFE | UNSAFE:
            raise RefusedError(405, "this method is not answered")
        if method in SAFE:
            return
        # Browsers send Origin with every unsafe request; what sends none is no page of ours.
        if headers.get("origin", "").lower() not in self._site.origins:
            raise RefusedError(403, "this request comes from another site")
        if headers.get("sec-fetch-site", "same-origin") != "same-origin":
            raise RefusedError(403, "this request comes from another site")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RefusedError(415, "requests must be application/json")

    async def _find_caller(self, headers: Mapping[str, str]) -> Caller:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self._site.cookie)
        except CookieError:
            found = None
        token = found.value if found is not None else ""
        if not token:
            return Caller(None, "")
        return Caller(await asyncio.to_thread(self._people.who, token), token)

    def _check_rate(self, scope: Scope, path: str, caller: Caller) -> None:
        address = (scope.get("client") or ("nobody",))[0]
        is_entry = caller.person is None or path in PUBLIC
        wait = self._entries.take(address) if is_entry else self._requests.take(str(caller.person))
        if wait:
            raise RefusedError(
                429, f"too many requests. Try again in {wait:.0f} s", **{"retry-after": f"{wait + 1:.0f}"}
            )


def _check_person(person: Person | None, path: str) -> None:
    if person is None:
        raise RefusedError(
            401, "you are not signed in, or no longer. Sign in again; what you ranked is kept in this browser"
        )
    is_owners = any(path == start or path.startswith(f"{start}/") for start in OWNERS)
    if is_owners and not person.is_owner:
        raise RefusedError(403, "this is for the owner alone")


async def _read_body(headers: Mapping[str, str], receive: Receive) -> Receive:
    """The body, within its limits of size and time, to be received once more."""
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > MOST_BYTES:
        raise RefusedError(413, f"a request may have {MOST_BYTES:,} bytes")
    body = b""
    try:
        async with asyncio.timeout(SECONDS_FOR_BODY):
            more = True
            while more:
                event = await receive()
                body += event.get("body", b"")
                more = event["type"] == "http.request" and event.get("more_body", False)
                if len(body) > MOST_BYTES:
                    raise RefusedError(413, f"a request may have {MOST_BYTES:,} bytes")
    except TimeoutError as error:
        raise RefusedError(408, "the request took too long to arrive") from error
    events = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Event:
        return events.pop() if events else await receive()

    return replay


def _with_headers(scope: Scope, send: Send) -> Send:
    async def send_on(event: Event) -> None:
        if event["type"] == "http.response.start":
            kept = {**HEADERS, "cache-control": "no-cache"} if scope["path"].startswith(PUBLIC_FOLDER) else HEADERS
            ours = [(name.encode(), value.encode()) for name, value in kept.items()]
            theirs = [(name, value) for name, value in event.get("headers", []) if name.decode().lower() not in kept]
            event = {**event, "headers": [*theirs, *ours]}
        await send(event)

    return send_on


async def refuse(scope: Scope, send: Send, refusal: RefusedError) -> None:
    """JSON for scripts; who opens a page unasked is led to the entrance."""
    is_page = scope["method"] in SAFE and not scope["path"].startswith("/api/")
    status, headers = refusal.status, dict(refusal.headers)
    if refusal.status == 401 and is_page:
        status, headers = 303, {"location": f"{'../' * (scope['path'].count('/') - 1)}enter"}
    body = json.dumps({"detail": refusal.detail}).encode()
    headers |= {"content-type": "application/json", "content-length": str(len(body))}
    sent = [(name.encode(), value.encode()) for name, value in headers.items()]
    await _with_headers(scope, send)({"type": "http.response.start", "status": status, "headers": sent})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def new_visit() -> str:
    """A cookie for somebody who is not signed in, which their page's token belongs to."""
    return secrets.token_urlsafe(32)
