"""Who is let in, and who is not: each rule as a request that must fail, beside the same request done right.

A rule that cannot fail protects nothing: test_weaknesses.py removes them one by one.
"""

from __future__ import annotations

import ast
import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from sqlalchemy import event

from tests.feedback.houses import fill, run_apart
from tests.feedback.visits import ORIGIN, SITE, TOKEN, House, Visitor, ranking_of, take
from tunesmith.errors import InputError
from tunesmith.feedback import serving
from tunesmith.feedback.database import open_database
from tunesmith.feedback.settings import ServeConfig
from tunesmith.feedback.store import Store
from tunesmith.feedback.web import entrance, guard, labeling, owner
from tunesmith.feedback.web.guard import Caller, Limiter, Site

WEB = Path(guard.__file__).parent


# Where a request comes from

HOSTS = [
    "evil.example",
    "127.0.0.1:9999",
    "127.0.0.1.evil.example:8421",
    "127.0.0.1",
    "",
    "localhost:8421.evil.example",
]
ORIGINS = [
    None,
    "null",
    "",
    "http://evil.example",
    "http://127.0.0.1:8421.evil.example",
    "http://evil.example/http://127.0.0.1:8421",
    "https://127.0.0.1:8421",
    "http://127.0.0.1",
    "http://127.0.0.1:8422",
]


@pytest.mark.parametrize("host", HOSTS)
def test_another_host_is_not_answered(house: House, host: str) -> None:
    """DNS rebinding: a name of the attacker's that leads to this machine."""
    for path in ("/enter", "/static/api.js", "/api/history"):
        reply = house.visit("ann").ask("GET", path, host=host)
        assert reply.status_code == 421
        assert "ann" not in reply.text


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/api/next"), ("PUT", "/api/draft"), ("DELETE", "/api/next"), ("PATCH", "/x")]
)
def test_another_origin_is_refused_whatever_the_method(
    house: House, origin: str | None, method: str, path: str
) -> None:
    assert house.visit("ann").ask(method, path, {}, origin=origin).status_code == 403


def test_a_page_of_another_site_is_refused_by_what_the_browser_says_of_it(house: House) -> None:
    ann = house.visit("ann")
    for site in ("cross-site", "same-site", "none"):
        assert ann.ask("POST", "/api/next", {}, sec_fetch_site=site).status_code == 403
    assert ann.ask("POST", "/api/next", {}, sec_fetch_site="same-origin").status_code == 200


def test_the_pages_token_is_asked_for(house: House) -> None:
    ann, ben = house.visit("ann"), house.visit("ben")
    for token in (None, "", "0" * 64, Caller(None, ben.session).csrf, Caller(None, "").csrf):
        assert ann.ask("POST", "/api/next", {}, x_csrf_token=token).status_code == 403
    assert ann.ask("POST", "/api/next", {}).status_code == 200


def test_a_form_of_another_page_cannot_be_json(house: House) -> None:
    for kind in ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", ""):
        assert house.visit("ann").ask("POST", "/api/next", {}, content_type=kind).status_code == 415


def test_no_other_site_may_read_an_answer(house: House) -> None:
    reply = house.visit("ann").ask("GET", "/api/history", origin="http://evil.example")
    assert not [name for name in reply.headers if name.startswith("access-control")]
    assert reply.headers["cross-origin-resource-policy"] == "same-origin"


# Who asks


def routes() -> list[APIRoute]:
    routers = (entrance.router, labeling.router, owner.router)
    found = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    assert len(found) > 15, "the walk looks at nothing"
    return found


def filled_path(route: APIRoute) -> str:
    return re.sub(r"\{form\}", "dpo", re.sub(r"\{number\}", "1", re.sub(r"\{item\}", "0" * 16, route.path)))


def test_every_route_asks_who_it_is(house: House) -> None:
    """All of them, now and later: what stands on the short list is what may be seen by anybody."""
    nobody, labeler = house.visit(), house.visit("ann")
    for route in routes():
        for method in route.methods - {"HEAD"}:
            path = filled_path(route)
            if path in guard.PUBLIC:
                continue
            reply = nobody.ask(method, path, None if method == "GET" else {})
            assert reply.status_code in (401, 303), f"{method} {path}"
            if reply.status_code == 303:
                assert reply.headers["location"] == "enter"
            if path.startswith(guard.OWNERS):
                assert labeler.ask(method, path, None if method == "GET" else {}).status_code == 403, f"{method} {path}"
    assert {"/", "/enter", "/join", "/api/sign-in", "/api/join"} == guard.PUBLIC


@pytest.mark.parametrize("path", ["/api/unknown", "/docs", "/openapi.json", "/redoc", "/.git/config", "/api/owner"])
def test_what_there_is_not_is_not_told_either(house: House, path: str) -> None:
    assert house.visit().ask("GET", path).status_code in (401, 303)


def test_a_session_comes_by_its_cookie_alone(house: House) -> None:
    """There is one way in: no header, address or other cookie opens what the cookie opens."""
    session, nobody = house.visit("ann").session, house.visit()
    for headers in ({"authorization": f"Bearer {session}"}, {"x_session": session}, {"cookie": f"session={session}"}):
        assert nobody.ask("GET", "/api/history", **headers).status_code == 401
    assert nobody.ask("GET", f"/api/history?token={session}&feedback={session}").status_code == 401
    assert nobody.ask("GET", "/api/history", cookie=f"feedback={session}").status_code == 200


def test_nobody_is_led_to_another_site(house: House) -> None:
    evil = "next=//evil.example&go_to=https://evil.example&redirect=//evil.example"
    for path in (f"/?token={TOKEN}&{evil}", f"/?{evil}", f"/rank?{evil}", "/rank//evil.example", "//evil.example/rank"):
        place = house.visit().ask("GET", path).headers["location"]
        assert place.removeprefix("../../") in ("owner", "enter", "../enter"), path


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static/....//app.py",
        "/static/..%5capp.py",
        "/static//etc/passwd",
        "/static/%00",
        "/static/templates",
        "/static/",
    ],
)
def test_nothing_but_static_files_is_read(house: House, path: str) -> None:
    reply = house.visit().ask("GET", path)
    assert reply.status_code in (303, 401, 404, 405)
    assert "import" not in reply.text


def test_the_start_up_token_opens_the_owners_account(house: House) -> None:
    for wrong in ("", "x", TOKEN[:-1], TOKEN + "t", "é"):
        reply = house.visit().client.get("/", params={"token": wrong})
        assert reply.headers["location"] == "enter"
        assert "set-cookie" not in reply.headers
    reply = house.visit().client.get("/", params={"token": TOKEN})
    assert (reply.status_code, reply.headers["location"]) == (303, "owner")
    cookie = reply.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    session = cookie.partition("=")[2].partition(";")[0]
    person = house.people.who(session)
    assert person is not None
    assert person.is_owner
    assert TOKEN not in session


def test_a_secure_site_has_secure_cookies() -> None:
    site = Site(frozenset({"a.example"}), frozenset({"https://a.example"}), "feedback")
    assert "; Secure" in site.set_cookie("x", 1)
    assert "; Secure" not in SITE.set_cookie("x", 1)


def test_signing_in_gives_a_new_session_whatever_cookie_came(house: House) -> None:
    """Session fixation."""
    house.people.join(house.people.invite(), "Ann", "correct horse battery")
    planted = Visitor(house, None, "p" * 43)
    reply = planted.ask("POST", "/api/sign-in", {"name": "Ann", "password": "correct horse battery"})
    assert reply.status_code == 200
    assert "p" * 43 not in reply.headers["set-cookie"]
    assert house.people.who("p" * 43) is None


def test_an_invitation_is_accepted_by_the_page(house: House) -> None:
    newcomer = Visitor(house, None, "v" * 43)
    joining = {"name": "Ann", "password": "correct horse battery", "invitation": house.people.invite()}
    assert newcomer.ask("POST", "/api/join", joining, x_csrf_token="").status_code == 403
    assert newcomer.ask("POST", "/api/join", joining).status_code == 200
    assert newcomer.ask("POST", "/api/join", {**joining, "name": "Ben"}).status_code == 403


def test_signing_out_ends_the_session_everywhere(house: House) -> None:
    ann = house.visit("ann")
    assert ann.ask("POST", "/api/sign-out", {}).status_code == 200
    assert ann.ask("POST", "/api/next", {}).status_code == 401


def test_a_blocked_labeler_is_out_at_once(house: House) -> None:
    ann, owner = house.visit("ann"), house.visit("owner", "owner")
    assert ann.ask("POST", "/api/next", {}).status_code == 200
    assert ann.person is not None
    assert owner.ask("PUT", f"/api/owner/people/{ann.person.id}", {"is_blocked": True}).status_code == 200
    assert ann.ask("POST", "/api/next", {}).status_code == 401


def test_nobody_reaches_another_ones_work(house: House) -> None:
    ann, ben = house.visit("ann"), house.visit("ben")
    item = take(ann)
    take(ben)
    assert ben.ask("GET", f"/api/items/{item['id']}").status_code == 404
    assert ben.ask("POST", "/api/rankings", ranking_of(item)).status_code == 404
    assert ben.ask("PUT", "/api/draft", {"item": item["id"], "version": 0, "draft": {}}).status_code == 404
    assert (
        ben.ask("POST", "/api/skips", {k: v for k, v in ranking_of(item).items() if k != "response"}).status_code == 404
    )
    assert ben.ask("GET", "/api/history").json() == {"items": []}


def test_models_are_not_told_to_who_ranks(house: House) -> None:
    ann = house.visit("ann")
    item = take(ann)
    told = (
        str(item)
        + ann.ask("POST", "/api/rankings", ranking_of(item)).text
        + ann.ask("GET", f"/api/items/{item['id']}").text
    )
    assert not re.search(r"base|tuned|larger|reference|model|seed", told)


# How much, how often


def test_guessing_is_slowed_down(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.feedback.people.SCRYPT", {"n": 2, "r": 8, "p": 1})
    visitor = Visitor(house, None, "v" * 43)
    codes = [
        visitor.ask("POST", "/api/join", {"name": "A", "password": "x" * 12, "invitation": "no"}) for _ in range(14)
    ]
    assert {reply.status_code for reply in codes[:9]} == {403}
    assert codes[-1].status_code == 429
    assert int(codes[-1].headers["retry-after"]) >= 1


def test_a_limiter_forgets_old_keys_and_refills(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("tunesmith.feedback.web.guard.time.monotonic", lambda: now[0])
    monkeypatch.setattr(Limiter, "MOST_KEYS", 100)
    limiter = Limiter(burst=2, per_second=1)
    assert [limiter.take("a") for _ in range(3)] == [0, 0, 1]
    now[0] = 1.0
    assert limiter.take("a") == 0
    for number in range(1000):
        limiter.take(str(number))
    assert len(limiter._left) == 100


def test_large_bodies_are_refused_before_they_are_read(house: House) -> None:
    ann = house.visit("ann")
    assert ann.ask("PUT", "/api/draft", {"draft": "x" * 300_000}).status_code == 413
    chunks = (b"x" * 10_000 for _ in range(60))
    headers = {"origin": ORIGIN, "x-csrf-token": Caller(None, ann.session).csrf, "cookie": f"feedback={ann.session}"}
    sent = ann.client.post("/api/next", content=chunks, headers={**headers, "content-type": "application/json"})
    assert sent.status_code == 413
    item = take(ann)
    draft = {"item": item["id"], "version": 0, "draft": {"comment": "x" * 25_000}}
    assert ann.ask("PUT", "/api/draft", draft).status_code == 422


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SECONDS_FOR_BODY", 0.05)

    async def never() -> Any:
        await asyncio.sleep(5)

    with pytest.raises(guard.RefusedError, match="too long to arrive") as refused:
        run_apart(guard._read_body({"content-length": "10"}, never))
    assert refused.value.status == 408


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"item": 1}',
        b'{"item": "\\ud800", "version": 0, "key": "\\u0000", "response": {"levels": [["\\udfff"]]}}',
        b"\xff\xfe\x00",
        b'{"item": "' + b"0" * 16 + b'", "version": 1e400, "key": "' + b"0" * 32 + b'", "response": {"levels": []}}',
        b'{"a": ' * 5000 + b"1" + b"}" * 5000,
    ],
)
def test_what_is_no_request_is_said_so(house: House, body: bytes) -> None:
    ann = house.visit("ann")
    headers = {"origin": ORIGIN, "x-csrf-token": Caller(None, ann.session).csrf, "cookie": f"feedback={ann.session}"}
    for path in ("/api/rankings", "/api/draft", "/api/skips"):
        method = "PUT" if path == "/api/draft" else "POST"
        reply = ann.client.request(method, path, content=body, headers={**headers, "content-type": "application/json"})
        assert reply.status_code in (400, 404, 422), reply.text
        assert reply.json()["detail"]


def test_odd_characters_are_kept_or_refused_never_an_error(house: House) -> None:
    ann = house.visit("ann")
    item = take(ann)
    for comment, status in (("\0", 400), ("\u202e<script>\ufeff", 200)):
        body = ranking_of(item)
        body["response"]["comment"] = comment
        assert ann.ask("POST", "/api/rankings", body).status_code == status
    draft = {"item": item["id"], "version": 0, "draft": {"comment": "\0"}}
    assert ann.ask("PUT", "/api/draft", draft).status_code == 422


# What is answered


def test_every_answer_has_its_headers(house: House) -> None:
    ann, nobody = house.visit("ann"), house.visit()
    replies = [
        ann.ask("GET", path) for path in ("/rank", "/api/history", "/static/rank.js", "/nothing", "/static/nothing")
    ]
    replies += [
        nobody.ask("GET", "/enter"),
        nobody.ask("GET", "/rank"),
        ann.ask("GET", "/owner"),
        ann.ask("POST", "/api/next", {}),
    ]
    replies += [ann.ask("GET", "/enter", host="evil.example")]
    for reply in replies:
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert "server" not in reply.headers


def test_an_error_tells_the_client_a_number_and_no_more(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the secret of /srv/feedback.db")

    monkeypatch.setattr(house.store, "history", fail)
    ann = house.visit("ann")
    ann.client = TestClient(house.app, base_url=ORIGIN, raise_server_exceptions=False)
    reply = ann.ask("GET", "/api/history")
    assert reply.status_code == 500
    assert "number" in reply.json()["detail"]
    assert "secret" not in reply.text
    assert "Traceback" not in reply.text
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("tunesmith")]
    assert ours
    assert not [line for line in ours if "secret" in line or ann.session in line], "nor is it in the log"


def test_a_full_disk_says_that_nothing_was_saved(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    from sqlalchemy.exc import OperationalError

    ann = house.visit("ann")
    item = take(ann)
    for message, status in (("database or disk is full", 507), ("database is locked", 503)):

        def fail(*_: object, said: str = message) -> None:
            raise OperationalError("INSERT", {}, sqlite3.OperationalError(said))

        with monkeypatch.context() as patched:
            patched.setattr(house.store, "rank", fail)
            reply = ann.ask("POST", "/api/rankings", ranking_of(item))
            assert (reply.status_code, reply.json()["detail"][:9]) == (status, "not saved")
    assert ann.ask("POST", "/api/rankings", ranking_of(item)).status_code == 200


def test_a_disk_that_is_really_full_loses_nothing_that_was_saved(house: House) -> None:
    """SQLite's own limit of pages, which fails as a full disk does."""
    engine = house.store.database._readers
    ann = house.visit("ann")
    item = take(ann)
    assert ann.ask("POST", "/api/rankings", ranking_of(item)).status_code == 200

    def limit(connection: Any) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {1 if is_full else 2**30}")

    is_full = True  # no limit is taken below what is used already: not a page more
    event.listen(engine, "begin", limit)
    codes = set()
    for _ in range(200):
        body = ranking_of(item) | {"response": {**ranking_of(item)["response"], "comment": "x" * 3000}}
        reply = ann.ask("POST", "/api/rankings", body | {"version": house.store.open_mine(1, item["id"]).version})
        codes.add(reply.status_code)
        if reply.status_code == 507:
            break
    assert codes <= {200, 507}
    assert 507 in codes
    is_full = False
    version = house.store.open_mine(1, item["id"]).version
    assert ann.ask("POST", "/api/rankings", body | {"version": version}).status_code == 200
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"


def test_pages_hold_no_script_style_or_address_of_their_own(house: House) -> None:
    owner = house.visit("owner", "owner")
    for path in ("/rank", "/owner", "/enter", "/join"):
        html = owner.ask("GET", path).text
        assert not re.search(r"<style|style=|\son\w+=|javascript:|https?://|//[a-z]", html)
        assert not re.search(r"<script(?! type=\"module\" src=\"static/\w+\.js\"></script>)", html)


def test_a_hostile_title_stays_a_title(house: House) -> None:
    owner = house.visit("owner", "owner")
    study = house.store.study().model_dump() | {
        "title": '"><script>x</script>',
        "questions": ['"><img src=x>'],
        "guidelines": "<b>",
    }
    assert owner.ask("PUT", "/api/owner/study", study).status_code == 200
    html = owner.ask("GET", "/rank").text
    assert "<script>x" not in html
    assert "<img" not in html
    assert "<b>" not in html


# The code, and how it is started


def test_scripts_write_text_as_text() -> None:
    code = {path.name: path.read_text(encoding="utf-8") for path in (WEB / "static").glob("*.js")}
    assert len(code) > 8
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc|"
        r"https?://(?!www\.w3\.org/2000/svg)"
    )
    assert re.search(forbidden, "node.innerHTML = text")
    assert {name: re.findall(forbidden, text) for name, text in code.items() if re.search(forbidden, text)} == {}


def glued_statements(code: str) -> list[int]:
    """Lines with SQL that is put together from values; constants of ours alone may stand in an f-string with SQL."""
    allowed, found = ("PRAGMA", "CREATE"), []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.JoinedStr):
            first = str(node.values[0].value) if node.values and isinstance(node.values[0], ast.Constant) else ""
            if re.match(r"(SELECT|INSERT|UPDATE|DELETE|CREATE|PRAGMA|DROP|ALTER)\b", first):
                found += [] if first.startswith(allowed) else [node.lineno]
    return found


def dangerous_calls(code: str) -> list[str]:
    """What runs a shell, code from text, or fetches an address."""
    found = []
    for node in ast.walk(ast.parse(code)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [
            name for name in names if re.match(r"(subprocess|pickle|urllib\.request|http\.client|requests|httpx)", name)
        ]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
            found.append(node.func.id)
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("system", "popen")
        ):
            found.append(node.func.attr)
    return found


def test_statements_are_bound_and_nothing_is_run_or_fetched() -> None:
    for path in WEB.parent.rglob("*.py"):
        code = path.read_text(encoding="utf-8")
        assert glued_statements(code) == [], path.name
        assert dangerous_calls(code) == [], path.name
    assert glued_statements("find(f'SELECT * FROM item WHERE id = {name}')") == [1]
    for planted in ("import subprocess", "eval(text)", "os.system(word)", "from urllib.request import urlopen"):
        assert dangerous_calls(planted), planted


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_the_network_is_let_in_only_when_it_is_said_how(host: str) -> None:
    with pytest.raises(InputError, match="--public-url"):
        serving.find_site(ServeConfig(host=host), 8421)
    site = serving.find_site(ServeConfig(host=host, public_url="https://label.example.org"), 8421)
    assert site.hosts == {"label.example.org"}
    assert site.is_secure


@pytest.mark.parametrize(
    "address", ["label.example.org", "ftp://x", "https://", "https://me:pw@x.example", "https://x/?a=1"]
)
def test_a_public_address_must_be_one(address: str) -> None:
    with pytest.raises(InputError, match="give one like"):
        serving.find_site(ServeConfig(public_url=address), 8421)


def test_the_store_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    database = open_database(str(path), create=True)
    fill(Store(database), 1)
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in tmp_path.iterdir()}
    database.close()
    assert set(modes.values()) == {"0o600"}, modes
    path.chmod(0o644)
    open_database(str(path)).close()
    assert path.stat().st_mode & 0o777 == 0o600
