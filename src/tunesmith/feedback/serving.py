"""The page as a process: where it listens, who may reach it, and what it says when it starts."""

from __future__ import annotations

import gc
import secrets
import socket
import sys
from urllib.parse import urlsplit

import uvicorn

from tunesmith.errors import InputError
from tunesmith.feedback.database import open_database
from tunesmith.feedback.people import OWNER, People
from tunesmith.feedback.settings import ServeConfig
from tunesmith.feedback.store import Store, Study
from tunesmith.feedback.web.app import make_app
from tunesmith.feedback.web.guard import Site
from tunesmith.signals import shielded
from tunesmith.terminal import describe_count, say

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
SECONDS_TO_SWITCH = 0.0005  # after each statement the writer waits for the interpreter; Python's own 5 ms add up
LONGEST_GUIDELINES = 20_000


def serve(config: ServeConfig) -> None:
    """Serves the page until a signal ends it.

    Raises:
        InputError: an address that cannot be listened at, or one that others reach without a --public-url.
    """
    listener = _listen(config)
    try:
        site = find_site(config, listener.getsockname()[1])
        database = open_database(config.database)
    except BaseException:
        listener.close()
        raise
    store, token = Store(database), secrets.token_urlsafe(32)
    people = People(database)
    people.find_or_add(OWNER, "owner")  # before anybody else can take the name
    _settle_study(store, config)
    address = config.public_url or f"http://127.0.0.1:{listener.getsockname()[1]}"
    app = make_app(store, people, site, token)
    settings = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # it would hold tokens
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        ws="none",
    )
    sys.setswitchinterval(SECONDS_TO_SWITCH)
    with shielded():  # a signal raised in what the collector calls would be lost
        gc.collect()
        gc.freeze()  # what is there now stays: the collector need not look at it again and again
    print(f"{address.rstrip('/')}/?token={token}", flush=True)
    study = store.study()
    say(f"Open this address to rank and to invite others; it is yours alone. {study.title}")
    say(f"{describe_count(study.overlap, 'ranking')} of each item. Ctrl-C stops the page; what was saved stays.")
    try:
        uvicorn.Server(settings).run(sockets=[listener])
    finally:
        database.close()


def find_site(config: ServeConfig, port: int) -> Site:
    """The names under which the page answers.

    Raises:
        InputError: it would be open to a network under names that nobody gave.
    """
    cookie = f"tunesmith-feedback-{port}"
    if config.public_url is not None:
        parts = urlsplit(config.public_url)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.username:
            raise InputError(f"public_url is '{config.public_url}'; give one like https://label.example.org")
        origin = f"{parts.scheme}://{parts.netloc}".lower()
        return Site(frozenset({parts.netloc.lower()}), frozenset({origin}), cookie)
    if config.host not in ("127.0.0.1", "localhost", "::1"):
        raise InputError(
            f"host is '{config.host}', which other machines reach. Say under which address they do, as "
            "--public-url https://label.example.org, and put something before it that speaks https"
        )
    hosts = {f"{name}:{port}" for name in LOOPBACK}
    return Site(frozenset(hosts), frozenset(f"http://{host}" for host in hosts), cookie)


def _listen(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # By its protocol asyncio knows it for TCP and lets small packets go at once; else answers wait for 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise InputError(
            f"cannot listen at {config.host}:{config.port}: {error.strerror}. Give another --port, or 0 for a free one"
        ) from error
    return listener


def _settle_study(store: Store, config: ServeConfig) -> None:
    """Keeps in the store what was given of the study now."""
    names = ("title", "overlap", "lease_minutes", "ratings", "questions")
    given = {name: value for name in names if (value := getattr(config, name)) is not None}
    if config.guidelines is not None:
        given["guidelines"] = _read_guidelines(config)
    before = store.study()
    after = Study(**{**before.model_dump(), **given})
    if after != before:
        store.change_study(after)


def _read_guidelines(config: ServeConfig) -> str:
    assert config.guidelines is not None
    try:
        text = config.guidelines.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{config.guidelines}: cannot be read as text in UTF-8: {error}") from error
    if len(text) > LONGEST_GUIDELINES:
        raise InputError(
            f"{config.guidelines}: {len(text):,} characters; guidelines have {LONGEST_GUIDELINES:,} at most"
        )
    return text
