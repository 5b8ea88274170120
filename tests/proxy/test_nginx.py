"""nginx as a front end: tokens, the answers to `auth_http`, and the real nginx."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from members import ADDRESS, PLACES, SECRET, Cluster, Member, cluster, until
from patience import PATIENT_S
from structlog.testing import capture_logs

from obox.auth import Forward, LinkRefused
from obox.auth import token as tokens
from obox.auth.token import PREFIX, TOKEN_S, UsedTokens, make_token
from obox.config import Listen
from obox.proxy.nginx import NginxAuth
from obox.server.http import HttpServer, application
from tests.imap.harness import Client

FORWARD = Forward("ben", "ben", "192.0.2.7", backend="b2", number=1)
NOW = 1_000_000.0
MODULE = Path("/usr/lib/nginx/modules/ngx_mail_module.so")
KEY = "a key of sixteen or more characters"


def token(secret: bytes = SECRET, now: float = NOW, nonce: bytes = b"n" * 16) -> str:
    return make_token(secret, FORWARD, now=now, nonce=nonce)


def read(text: str, *, user: str = "ben", now: float = NOW, secret: bytes = SECRET) -> Forward:
    return UsedTokens().read((b"o" * 32, secret), text, user=user, now=now)


def test_a_token_says_who_logs_in_from_where() -> None:
    assert read(token()) == FORWARD
    assert read(token(), now=NOW + TOKEN_S) == FORWARD
    # The clocks of members may differ.
    assert read(token(), now=NOW - TOKEN_S) == FORWARD


def test_a_token_is_good_once() -> None:
    used = UsedTokens()
    used.read((SECRET,), token(), user="ben", now=NOW)
    with pytest.raises(LinkRefused, match="used before"):
        used.read((SECRET,), token(), user="ben", now=NOW + 1)
    used.read((SECRET,), token(nonce=b"m" * 16), user="ben", now=NOW + 1)
    used.read((SECRET,), token(nonce=b"k" * 16, now=NOW + 90), user="ben", now=NOW + 90)
    # Expired tokens are forgotten.
    assert len(used) == 1


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "TOKENS_MAX", 2)
    used = UsedTokens()
    for nonce in (b"a" * 16, b"b" * 16):
        used.read((SECRET,), token(nonce=nonce), user="ben", now=NOW)
    with pytest.raises(LinkRefused, match="too many"):
        used.read((SECRET,), token(), user="ben", now=NOW)


@pytest.mark.parametrize(
    ("text", "user", "now", "why"),
    [
        (token(b"x" * 32), "ben", NOW, "forged"),
        (token()[:-4] + "AAAA", "ben", NOW, "forged"),
        (token(), "anna", NOW, "another user"),
        (token(), "ben", NOW + TOKEN_S + 1, "expired"),
        (token(), "ben", NOW - 2 * TOKEN_S, "expired"),
        (PREFIX, "ben", NOW, "forged"),
        (PREFIX + "AA", "ben", NOW, "forged|no token"),
        (PREFIX + "ü", "ben", NOW, "no token"),
        (PREFIX + "A" * 100_000, "ben", NOW, "too long"),
    ],
)
def test_what_is_no_token_is_refused(text: str, user: str, now: float, why: str) -> None:
    with pytest.raises(LinkRefused, match=why):
        read(text, user=user, now=now)


# -- at the owner ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def proxied(tmp_path: Path) -> AsyncIterator[tuple[Cluster, Member, Member]]:
    async with cluster(tmp_path) as made:
        made.rows.own("ben", "b2")
        yield made, await made.member("p1", proxy=True), await made.member("b2")


def auth_of(member: Member, *, all_here: bool = False) -> NginxAuth:
    ports = {"imap": member.port} if all_here else {}
    return NginxAuth(member.forwarder, lambda: KEY, lambda: (ADDRESS, ports), all_here=all_here)


def asked(**more: str) -> dict[str, str]:
    headers = {"auth-method": "plain", "auth-protocol": "imap", "auth-user": "ben", "auth-pass": "secret"}
    return headers | {"client-ip": "192.0.2.7"} | {name.replace("_", "-"): value for name, value in more.items()}


async def test_the_answer_names_the_owner_and_a_password(proxied: tuple[Cluster, Member, Member]) -> None:
    _, proxy, b2 = proxied
    answer = await auth_of(proxy).answer(asked())
    place = (answer["Auth-Status"], answer["Auth-Server"], answer["Auth-Port"], answer["Auth-User"])
    assert place == ("OK", ADDRESS, str(b2.port), "ben")
    client = await b2.client()
    await client.ok(f"LOGIN ben {answer['Auth-Pass']}")
    assert [(who.user, who.remote) for who in b2.imap.who()] == [("ben", "192.0.2.7")]
    with capture_logs() as logs:
        again = await (await b2.client()).cmd(f"LOGIN ben {answer['Auth-Pass']}")
    assert again[-1].startswith(b"NO [AUTHENTICATIONFAILED]")
    assert [(line["event"], line["reason"]) for line in logs] == [
        ("trusted link refused", "a token that was used before")
    ]
    assert len(b2.penalties) == 1


@pytest.mark.parametrize("auth_ssl", ["on", ""])
async def test_the_owner_hears_whether_the_client_of_nginx_used_tls(
    proxied: tuple[Cluster, Member, Member], auth_ssl: str
) -> None:
    """nginx connects to this backend, which forwards the client to the owner."""
    made, _, b2 = proxied
    b1 = await made.member("b1")
    answer = await auth_of(b1, all_here=True).answer(asked(auth_ssl=auth_ssl))
    client = await b1.client()
    await client.ok(f"LOGIN ben {answer['Auth-Pass']}")
    assert [who.tls for member in (b1, b2) for who in member.imap.who()] == [bool(auth_ssl)] * 2


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"auth_pass": "wrong"}, "[AUTHENTICATIONFAILED]"),
        ({"auth_user": "nobody"}, "[AUTHENTICATIONFAILED]"),
        ({"auth_user": "b%65n", "auth_pass": "s%65cret"}, "OK"),  # nginx escapes
        ({"auth_protocol": "pop3"}, "Only IMAP"),
        ({"auth_method": "cram-md5"}, "Only IMAP"),
        ({"client_ip": ""}, "[UNAVAILABLE]"),
        ({"auth_pass": "x" * 5000}, "[UNAVAILABLE]"),
        ({"auth_user": "carl"}, "[UNAVAILABLE]"),
    ],
)
async def test_what_nginx_is_answered(
    proxied: tuple[Cluster, Member, Member], more: dict[str, str], status: str
) -> None:
    made, proxy, _ = proxied
    made.rows.own("carl", "b9")
    # The backend has no port without TLS.
    made.rows.places["b9"] = (ADDRESS, {"imaps": 1})
    answer = await auth_of(proxy).answer(asked(**more))
    assert answer["Auth-Status"].startswith(status)
    assert ("Auth-Pass" in answer) == (status == "OK")


async def test_a_member_that_serves_all_is_named_itself_and_forwards(proxied: tuple[Cluster, Member, Member]) -> None:
    """The supervisor of workers is such a member, because a front end cannot reach the
    workers."""
    _, proxy, b2 = proxied
    auth = auth_of(proxy, all_here=True)
    answer = await auth.answer(asked())
    assert (answer["Auth-Server"], answer["Auth-Port"]) == (ADDRESS, str(proxy.port))
    login = f"LOGIN ben {answer['Auth-Pass']}"
    with capture_logs() as logs:
        refused = await (await b2.client()).cmd(login)
    assert refused[-1].startswith(b"NO [AUTHENTICATIONFAILED]")
    client = await proxy.client()
    await client.ok(login)
    await client.ok("SELECT INBOX")
    assert [(who.user, who.remote) for who in b2.imap.who() if who.user] == [("ben", "192.0.2.7")]
    with capture_logs() as more:
        again = await (await proxy.client()).cmd(login)
    assert again[-1].startswith(b"NO [AUTHENTICATIONFAILED]")
    reasons = [line["reason"] for line in [*logs, *more] if line["event"] == "trusted link refused"]
    assert reasons == ["a token for another member", "a token that was used before"]


async def test_failures_count_for_the_client_and_not_for_nginx(proxied: tuple[Cluster, Member, Member]) -> None:
    _, proxy, _ = proxied
    await auth_of(proxy).answer(asked(auth_pass="wrong"))
    assert list(proxy.penalties.by_address) == ["192.0.2.7"]


# -- the real nginx ----------------------------------------------------------------------------------------------------

CONFIG = """daemon off;
master_process off;
pid {home}/pid;
error_log {home}/log info;
load_module {module};
events {{ worker_connections 64; }}
mail {{
    server_name mail.example.org;
    auth_http 127.0.0.1:{http}/nginx-auth;
    auth_http_header X-Obox-Key "{key}";
    imap_capabilities IMAP4rev1 IMAP4rev2 SASL-IR ID ENABLE IDLE LITERAL+;
    server {{
        listen 127.0.0.1:{port};
        protocol imap;
    }}
}}
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind((ADDRESS, 0))
        return int(free.getsockname()[1])


@asynccontextmanager
async def http(member: Member, *, all_here: bool = False) -> AsyncIterator[int]:
    server = HttpServer(application(routes=auth_of(member, all_here=all_here).routes()))
    entry = Listen(ADDRESS, 0)
    listener = await asyncio.get_running_loop().create_server(lambda: server.factory(entry, None), ADDRESS, 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        await server.close()


@asynccontextmanager
async def nginx(home: Path, port_of_http: int, key: str = KEY) -> AsyncIterator[int]:
    port = free_port()
    home.mkdir()  # noqa: ASYNC240 - nothing else runs on this loop
    config = home / "nginx.conf"
    config.write_text(CONFIG.format(home=home, module=MODULE, http=port_of_http, port=port, key=key))
    program = shutil.which("nginx", path=PLACES)
    process = await asyncio.create_subprocess_exec(str(program), "-c", str(config), "-e", str(home / "log"))
    try:
        async with asyncio.timeout(PATIENT_S):
            while True:
                try:
                    (await asyncio.open_connection(ADDRESS, port))[1].close()
                    break
                except OSError:
                    assert process.returncode is None, (home / "log").read_text()
                    await asyncio.sleep(0.05)
        yield port
    finally:
        process.terminate()
        await process.wait()


async def test_a_name_beyond_latin_1_is_answered(proxied: tuple[Cluster, Member, Member]) -> None:
    """nginx passes on the bytes of the name. The answer used to be a stack trace."""
    made, proxy, _ = proxied
    (made.path / "users").write_text("łucja:{PLAIN}secret::::::\n")
    made.users.expect_change()
    made.rows.own("%c5%82ucja", "b2")
    async with http(proxy) as port:
        reader, writer = await asyncio.open_connection(ADDRESS, port)
        writer.write(
            b"GET /nginx-auth HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Obox-Key: %b\r\nAuth-Method: plain\r\n"
            b"Auth-Protocol: imap\r\nAuth-User: %%C5%%82ucja\r\nAuth-Pass: secret\r\nClient-IP: 192.0.2.7\r\n\r\n"
            % KEY.encode()
        )
        answer = await asyncio.wait_for(reader.read(), PATIENT_S)
        writer.close()
    assert b"\r\nauth-status: ok\r\n" in answer.lower(), answer
    assert b"\r\nauth-user: \xc5\x82ucja\r\n" in answer.lower()


async def through(port: int) -> Client:
    reader, writer = await asyncio.open_connection(ADDRESS, port)
    made = Client(reader, writer)
    made.strict = False
    await made.line()
    return made


@pytest.mark.needs("nginx")
@pytest.mark.skipif(not MODULE.exists(), reason="needs the Debian package libnginx-mod-mail")
@pytest.mark.parametrize("all_here", [False, True])
async def test_the_real_nginx_logs_in_at_the_owner(
    proxied: tuple[Cluster, Member, Member], tmp_path: Path, all_here: bool
) -> None:
    _, proxy, b2 = proxied
    async with http(proxy, all_here=all_here) as port, nginx(tmp_path / "nginx", port) as front:
        client = await through(front)
        assert (await client.cmd("LOGIN ben wrong"))[-1].startswith(b"NO [AUTHENTICATIONFAILED]")
        await client.ok("LOGIN ben secret")
        await client.append("INBOX", b"Subject: a mail\r\n\r\nbody\r\n")
        assert (await client.ok("SELECT INBOX"))[0:]
        assert [who.user for who in b2.imap.who()] == ["ben"]
        assert b2.counts.results == [("imap" if all_here else "nginx", "accepted")]
        await client.ok("LOGOUT")
        await until(lambda: not b2.imap.who())


@pytest.mark.needs("nginx")
@pytest.mark.skipif(not MODULE.exists(), reason="needs the Debian package libnginx-mod-mail")
async def test_without_the_key_nobody_is_answered(proxied: tuple[Cluster, Member, Member], tmp_path: Path) -> None:
    _, proxy, b2 = proxied
    async with http(proxy) as port, nginx(tmp_path / "nginx", port, "another key") as front:
        client = await through(front)
        client.send(b"a LOGIN ben secret\r\n")
        assert not (await client.line()).startswith(b"a OK")
        assert b2.imap.who() == []
        assert len(proxy.penalties) == 0
