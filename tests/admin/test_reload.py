"""A reload uses the settings that can change while the backend runs, and names those
that need a restart. If the configuration has an error, the reload changes nothing."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from adminservice import KEY, USERS, Service, mail, running
from certificates import certificate
from patience import PATIENT_S

from metacache import Change
from obox.backend import Backend
from obox.cluster import Assigned, Here
from obox.config import settings
from obox.escaping import escape
from obox.objectstore.keys import mail_key
from obox.store.api import NewMail
from obox.types import StorageId, Uid

ANNA = "anna@example.org"
ZOE = "zoe@other.org"
ELSEWHERE = "192.0.2.1"
NOW, LATER = "now", "after a restart"
PORT = ["127.0.0.1:0"]
BASE: dict[str, dict[str, Any]] = {
    "": {"state_dir": "state"},
    "storage": {"url": "memory://"},
    "auth": {"failure_delay": "10ms"},
    "imap": {"listen": PORT},
    "lmtp": {"listen": PORT, "max_mail_size": "20M"},
    "pop3": {"listen": PORT},
    "http": {"listen": PORT, "api_key": KEY},
    "tls": {"cert": "one.pem", "key": "one.key"},
}


class Alone:
    """The router of a cluster of one backend."""

    async def route(self, sid: StorageId) -> Here:
        return Here(Assigned("b1", 1, 1))

    def known(self, sid: StorageId) -> Here:
        return Here(Assigned("b1", 1, 1))

    async def reread(self, sid: StorageId, seen: Assigned) -> Here:
        return await self.route(sid)


class File:
    """A configuration that the test writes again with changes:
    `change(imap={"idle_timeout": "1h"})` sets a value on top of BASE, and None removes
    a setting."""

    def __init__(self, home: Path) -> None:
        self.path = home / "obox.toml"
        (home / "users").write_text(USERS)
        (home / "others").write_text(f"{ZOE}:{{PLAIN}}secret:::::\nanna:{{PLAIN}}secret:::::\n")
        (home / "secret").write_text("s" * 32)
        (home / "secret").chmod(0o600)
        for name in ("one", "two"):
            certificate(home, name, f"{name}.example")
        self.change()

    def change(self, extra: str = "", **sections: dict[str, Any] | None) -> None:
        merged = {name: {**BASE.get(name, {}), **(more or {})} for name, more in {**BASE, **sections}.items()}
        text = ""
        for name, values in merged.items():
            if name in sections and sections[name] is None:
                continue
            text += f"[{name}]\n" if name else ""
            text += "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items() if value is not None)
        self.path.write_text(text + extra)


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path)


@pytest.fixture
async def service(file: File) -> AsyncIterator[Service]:
    async with running(file.path, Alone()) as one:
        yield one


@pytest.fixture(autouse=True)
def levels() -> Iterator[None]:
    """Restore the levels of the loggers after each test, because all tests of the
    process share the loggers."""
    loggers = [logging.getLogger(name) for name in ("", "asyncio", "uvicorn", "uvicorn.error", "botocore", "urllib3")]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


class Line:
    """A connection from which the test reads the answers line by line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, service: Service, protocol: str = "imap") -> tuple[Line, str]:
        port = int(service.backend.listeners.addresses(protocol)[0].rpartition(":")[2])
        one = cls(*await asyncio.open_connection("127.0.0.1", port))
        return one, await one.read()

    async def read(self) -> str:
        return (await asyncio.wait_for(self.reader.readline(), PATIENT_S)).decode().rstrip()

    async def ask(self, command: str) -> list[str]:
        """Send an IMAP command and return all lines of its answer."""
        self.writer.write(f"t {command}\r\n".encode())
        lines = [await self.read()]
        while not lines[-1].startswith("t "):
            assert lines[-1], "closed"
            lines.append(await self.read())
        return lines

    async def say(self, command: str) -> str:
        """Send an LMTP command and return its answer as one text."""
        self.writer.write(f"{command}\r\n".encode())
        lines = [await self.read()]
        while lines[-1][3:4] == "-":
            lines.append(await self.read())
        return " ".join(lines)


async def login(service: Service, user: str = ANNA) -> str:
    """Log in on a new connection and return the last line of the answer."""
    line, greeting = await Line.open(service)
    if not greeting.startswith("* OK"):
        return greeting
    try:
        return (await line.ask(f"LOGIN {user} secret"))[-1]
    finally:
        line.writer.close()


def names(rows: list[dict[str, Any]], used: str) -> list[str]:
    return [row["setting"] for row in rows if row["used"] == used]


# -- every setting -----------------------------------------------------------------------------------------------------


def imap(name: str) -> Callable[[Backend], object]:
    """Return the value of a setting for an IMAP client that connects at this moment."""
    return lambda backend: getattr(backend.logins["imap"].context.settings_of(ELSEWHERE), name)


def lmtp(name: str) -> Callable[[Backend], object]:
    return lambda backend: getattr(backend.lmtp.settings, name)


def pop3(name: str) -> Callable[[Backend], object]:
    return lambda backend: getattr(backend.logins["pop3"].context.settings_of(ELSEWHERE), name)


def store(name: str) -> Callable[[Backend], object]:
    return lambda backend: getattr(backend.parts.store.env.settings, name)


def found(user: str) -> Callable[[Backend], object]:
    """Return whether the user databases for logins, for deliveries and for the
    administrator know a user."""

    def probe(backend: Backend) -> object:
        asking = backend.parts.authenticator.users, backend.lmtp.deliverer.users, backend.admin.users
        return [users.lookup(user) is not None for users in asking]

    return probe


def both(*probes: Callable[[Backend], object]) -> Callable[[Backend], object]:
    """Return the results of all probes. The test expects each of them to change."""
    return lambda backend: [probe(backend) for probe in probes]


PROBES: dict[str, tuple[object, Callable[[Backend], object]]] = {
    "storage.durability": ("bucket", store("durability")),
    "storage.journal_interval": ("2s", lambda backend: backend.parts.store.journal.interval_s),
    "storage.batch_linger": ("20ms", store("batch_linger_s")),
    "storage.delete_delay": ("2d", lambda backend: backend.parts.store.env.delete_delay_s),
    "storage.autofix_storage": (True, both(store("autofix_storage"), imap("autofix_storage"))),
    "storage.fetch_lost_mails_as_empty": (True, imap("lost_as_empty")),
    "storage.lost_mailbox_prefix": ("found-", store("lost_mailbox_prefix")),
    "fscache.max_size": ("2M", lambda backend: backend.parts.fscache.stats().max_size),
    "metacache.upload_interval": ("1min", store("upload_interval_s")),
    "metacache.close_delay": ("7s", lambda backend: backend.parts.copies.close_delay_s),
    "metacache.forced_refresh_interval": ("1h", store("forced_refresh_interval_s")),
    "metacache.refresh_index_once_after": (7, store("refresh_index_once_after")),
    "metacache.rescan_mails_once_after": (7, lambda backend: backend.parts.store.env.must_rescan(6)),
    "metacache.flush_at": ("03:30", lambda backend: backend.parts.store.upkeep.nightly.next_at < 4e9),
    "metacache.max_rescan_mail_count": (3, store("max_rescan_mail_count")),
    "metacache.priority_weights": ("", lambda backend: backend.parts.cleaner.weights),
    "metacache.size_weights": ("", lambda backend: backend.parts.cleaner.weights),
    "auth.passwd_file": ("others", found(ZOE)),
    "auth.default_domain": ("example.org", found("anna")),
    "auth.disable_plaintext_auth": (False, both(imap("plaintext_login"), pop3("plaintext_login"))),
    "auth.failure_delay": ("1s", lambda backend: tuple(backend.parts.authenticator.penalties.delays_s[1:2])),
    "auth.max_failure_delay": ("1s", lambda backend: backend.parts.authenticator.penalties.delays_s[-1]),
    "auth.cache_ttl": ("1s", lambda backend: backend.parts.authenticator.cache_ttl_s),
    "imap.max_line_length": ("8K", lambda backend: imap("limits")(backend).line_bytes_max),
    "imap.max_literal_size": ("8K", lambda backend: imap("limits")(backend).literal_bytes_max),
    "imap.max_pipelined_commands": (3, imap("pipelined_lines_max")),
    "imap.max_user_sessions": (3, imap("user_sessions_max")),
    "imap.max_address_sessions": (3, imap("address_sessions_max")),
    "imap.login_timeout": ("10s", imap("login_timeout_s")),
    "imap.idle_timeout": ("1h", imap("idle_timeout_s")),
    "imap.idle_keepalive": ("1min", imap("keepalive_s")),
    "imap.max_write_buffer": ("64K", imap("write_buffer_max")),
    "imap.fetch_failure": ("disconnect-after", imap("fetch_failure")),
    "lmtp.trusted_networks": (["10.0.0.0/8"], lambda backend: backend.lmtp.trusts("10.1.1.1")),
    "lmtp.max_recipients": (3, lmtp("recipients_max")),
    "lmtp.recipient_delimiter": ("-", lmtp("delimiters")),
    "lmtp.max_mail_size": ("1M", both(lmtp("mail_bytes_max"), lambda backend: backend.lmtp.deliverer.mail_bytes_max)),
    "lmtp.timeout": ("1min", lmtp("command_timeout_s")),
    "pop3.max_user_sessions": (3, pop3("user_sessions_max")),
    "pop3.max_address_sessions": (3, pop3("address_sessions_max")),
    "pop3.login_timeout": ("10s", pop3("login_timeout_s")),
    "pop3.idle_timeout": ("1h", pop3("idle_timeout_s")),
    "pop3.lock_session": (True, pop3("lock_session")),
    "pop3.login_delay": ("1min", pop3("login_delay_s")),
    "pop3.mark_seen": (False, pop3("mark_seen")),
    "pop3.enable_last": (True, pop3("enable_last")),
    "pop3.deleted_flag": ("$POP3Deleted", pop3("deleted_flag")),
    "pop3.uidl_format": ("%u", pop3("uidl_format")),
    "pop3.reuse_xuidl": (True, pop3("reuse_xuidl")),
    "pop3.expire": ("30", pop3("expire")),
    "tls.cert": ("two.pem", lambda backend: set(backend.certificates.current.by_name)),
    "tls.key": ("two.key", lambda backend: set(backend.certificate_watch.watched)),
    "cluster.secret_file": ("secret", lambda backend: backend.forwarder.secrets),
    "server.shutdown_timeout": (
        "10s", both(lambda backend: backend.lifecycle.drain_timeout_s, lambda backend: backend.parts.config.server)
    ),
    "server.haproxy_trusted_networks": (["10.0.0.0/8"], lambda backend: backend.listeners.proxy_networks),
    "server.haproxy_timeout": ("1s", lambda backend: backend.listeners.proxy_timeout_s),
    "quota.max_mail_size": ("1M", both(store("max_mail_size"), imap("mail_bytes_max"))),
    "quota.max_mailbox_mails": (1000, store("mailbox_mails_max")),
    "log.level": ("error", lambda backend: logging.getLogger("botocore").getEffectiveLevel()),
    "mailboxes.create": (["Notes"], store("mailboxes")),
}  # fmt: skip
"""For each setting that needs no restart: another value, and a probe that reads the
value from a running backend."""

TOGETHER = {"tls": BASE["tls"].keys()}
"""Settings that can only be changed together."""


def others(key: str) -> dict[str, dict[str, object]]:
    section, _, name = key.rpartition(".")
    return {section: {one: PROBES[f"{section}.{one}"][0] for one in TOGETHER.get(section, (name,))}}


def test_each_setting_that_needs_no_restart_has_a_probe() -> None:
    assert sorted(PROBES) == sorted(row.key for row in settings() if not row.restart)


async def test_each_setting_that_needs_no_restart_is_used_and_taken_back(service: Service, file: File) -> None:
    assert await service.call("reload") == []
    for key, (_, probe) in PROBES.items():
        before = probe(service.backend)
        file.change(**others(key))
        rows = await service.call("reload")
        assert key in names(rows, NOW), key
        assert not names(rows, LATER), key
        after = probe(service.backend)
        pairs = zip(before, after, strict=True) if isinstance(before, list) else [(before, after)]
        assert all(old != new for old, new in pairs), f"{key}: {before} is not replaced"
        file.change()
        assert names(await service.call("reload"), NOW) == names(rows, NOW), key
        assert probe(service.backend) == before, key


# -- what clients see --------------------------------------------------------------------------------------------------


async def test_new_connections_get_new_limits_and_earlier_connections_keep_theirs(service: Service, file: File) -> None:
    line, _ = await Line.open(service)
    assert f"APPENDLIMIT={50 << 20}" in (await line.ask(f"LOGIN {ANNA} secret"))[-1]
    lmtp_line, _ = await Line.open(service, "lmtp")
    file.change(quota={"max_mail_size": "1M"}, lmtp={"max_mail_size": None}, imap={"max_user_sessions": 1})
    assert names(await service.call("reload"), NOW) == [
        "imap.max_user_sessions", "lmtp.max_mail_size", "quota.max_mail_size"
    ]  # fmt: skip
    assert f"APPENDLIMIT={50 << 20}" in (await line.ask("CAPABILITY"))[0]
    assert f"SIZE {20 << 20} " in await lmtp_line.say("LHLO client")
    other, _ = await Line.open(service)
    assert f"APPENDLIMIT={1 << 20}" in (await other.ask("LOGIN ben@example.org secret"))[-1]
    lmtp_line, _ = await Line.open(service, "lmtp")
    assert f"SIZE {1 << 20} " in await lmtp_line.say("LHLO client")
    assert (await login(service)).startswith("t NO [LIMIT]")
    # The store has a single limit for all sessions. A client to whom an older session
    # announced more is refused as well.
    body = "x" * (2 << 20)
    answer = await line.ask(f"APPEND INBOX {{{len(body)}+}}\r\n{body}")
    assert answer[-1].startswith("t NO [TOOBIG]"), answer
    assert (await line.ask("NOOP"))[-1].startswith("t OK")


async def test_other_users_and_networks(service: Service, file: File) -> None:
    assert "t OK" in await login(service)
    assert "t NO" in await login(service, ZOE)
    file.change(auth={"passwd_file": "others", "default_domain": "example.org"}, lmtp={"trusted_networks": ["::1"]})
    assert set(names(await service.call("reload"), NOW)) == {
        "auth.passwd_file", "auth.default_domain", "lmtp.trusted_networks"
    }  # fmt: skip
    assert "t OK" in await login(service, ZOE)
    assert "t OK" in await login(service, "anna")
    assert "t NO" in await login(service, "ben@example.org")
    assert [row["user"] for row in await service.call("userList")] == [ANNA, ZOE]
    _, refusal = await Line.open(service, "lmtp")
    assert refusal.startswith("554 ")


async def test_remotes_come_change_and_go(service: Service, file: File) -> None:
    def limits() -> list[object]:
        of = service.backend.logins["imap"].context.settings_of
        return [of(address).user_sessions_max for address in ("127.0.0.1", ELSEWHERE)]

    name = 'remote."127.0.0.0/8".imap.max_user_sessions'
    for limit in (1, 2):
        file.change(f'[remote."127.0.0.0/8"]\nimap.max_user_sessions = {limit}\n')
        assert await service.call("reload") == [{"setting": name, "used": NOW}]
        assert limits() == [limit, 50]
    held, _ = await Line.open(service)
    await held.ask(f"LOGIN {ANNA} secret")
    assert "t OK" in await login(service)
    file.change(f'[remote."{ELSEWHERE}"]\nimap.max_user_sessions = 7\n')
    assert len(await service.call("reload")) == 2
    assert limits() == [50, 7]


# -- what the store does -----------------------------------------------------------------------------------------------


async def test_what_waits_for_its_upload_waits_no_longer(service: Service, file: File) -> None:
    user = await service.backend.parts.store.open_user(ANNA, escape(ANNA))
    await user.append("INBOX", [NewMail(mail(1), ("\\Flagged",))])
    box = await user.select("INBOX")
    await box.store_flags(box.state.uids, "add", ["\\Seen"])
    assert box.change is Change.IMPORTANT
    file.change(metacache={"upload_interval": "1s"})
    assert names(await service.call("reload"), NOW) == ["metacache.upload_interval"]
    async with asyncio.timeout(PATIENT_S):
        while box.change is not Change.NONE:  # noqa: ASYNC110 - an upload has no event of its own
            await asyncio.sleep(0.05)
    await box.release()
    await user.release()


async def test_a_lost_mail_is_expunged_once_the_settings_say_so(service: Service, file: File) -> None:
    backend = service.backend
    await service.deliver(ANNA, [mail(1), mail(2)])
    await backend.parts.fscache.flush()
    box = (await backend.parts.store.open_user(ANNA, escape(ANNA))).boxes
    ((guid, _),) = box.items()
    key = mail_key(StorageId(escape(ANNA)), guid, Uid(1))
    await backend.parts.bucket.delete([key], kind="mail")
    await backend.parts.fscache.drop(key)
    every = {"user": ANNA, "query": ["mailbox", "INBOX", "all"], "field": ["uid", "text"]}
    assert [row["uid"] for row in await service.call("fetch", **every)] == [1, 2]
    file.change(storage={"autofix_storage": True})
    assert names(await service.call("reload"), NOW) == ["storage.autofix_storage"]
    assert [row["uid"] for row in await service.call("fetch", **every)] == [2]


async def test_bodies_above_a_smaller_limit_are_evicted(service: Service, file: File) -> None:
    cache = service.backend.parts.fscache
    for number in range(20):
        await cache.put(f"key{number}", bytes(200_000))
    await cache.flush()
    assert cache.stats().bytes > 20 * 200_000
    file.change(fscache={"max_size": "1M"})
    await service.call("reload")
    await cache.flush()
    assert 0 < cache.stats().bytes <= 1 << 20
    assert (await service.call("fscacheStatus"))[0]["max_size"] == 1 << 20


# -- all or nothing, and what waits ------------------------------------------------------------------------------------


class Logged:
    """Record the lines that the backend logs about its reloads."""

    def __init__(self, service: Service) -> None:
        self.lines: list[tuple[str, str, list[str] | str]] = []
        service.backend.lifecycle._log = self

    def info(self, event: str, **values: Any) -> None:
        self.lines.append(("info", event, values.get("settings", [])))

    def warning(self, event: str, **values: Any) -> None:
        self.lines.append(("warning", event, values.get("settings", [])))

    def error(self, event: str, **values: Any) -> None:
        self.lines.append(("error", event, values["error"]))


async def test_a_mixed_change_is_used_as_far_as_it_can_be(service: Service, file: File) -> None:
    logged, backend = Logged(service), service.backend
    deadline = backend.parts.config.storage.deadline
    more: dict[str, Any] = {
        "storage": {"deadline": "20s", "secret_access_key": "hush", "access_key_id": "key"},
        "imap": {"listen": ["127.0.0.1:1"], "idle_timeout": "1h"},
        "lmtp": None,
        "metrics": {"listen": PORT},
    }
    waiting = [
        "storage.access_key_id", "storage.secret_access_key", "storage.deadline", "imap.listen", "lmtp.listen",
        "metrics.listen",
    ]  # fmt: skip
    file.change(**more)
    rows = await service.call("reload")
    assert rows == [
        {"setting": "imap.idle_timeout", "used": NOW},
        *({"setting": name, "used": LATER} for name in waiting),
    ]
    later = "configuration reloaded, some changes wait for a restart"
    assert logged.lines == [("info", "configuration reloaded", ["imap.idle_timeout"]), ("warning", later, waiting)]
    assert backend.parts.config.storage.deadline == deadline
    assert backend.logins["imap"].context.settings_of("").idle_timeout_s == 3600
    line, _ = await Line.open(service, "lmtp")
    assert (await line.say("LHLO client")).startswith("250")

    # A reload compares the file with the settings in use, not with the file that was
    # read last.
    more["imap"]["idle_timeout"] = "2h"
    file.change(**more)
    rows = await service.call("reload")
    assert (names(rows, NOW), names(rows, LATER)) == (["imap.idle_timeout"], waiting)
    assert (names(await service.call("reload"), LATER)) == waiting
    file.change()
    assert await service.call("reload") == [{"setting": "imap.idle_timeout", "used": NOW}]
    assert logged.lines[-1] == ("info", "configuration reloaded", ["imap.idle_timeout"])


@pytest.mark.parametrize(
    ("sections", "extra", "said"),
    [
        ({"imap": {"idle_timeout": "1h", "idle_timeot": "1h"}}, "", "imap.idle_timeot"),
        ({"imap": {"idle_timeout": "x"}}, "", "imap.idle_timeout"),
        ({}, "[nonsense", "not TOML"),
        ({"managesieve": {"listen": PORT}}, "", "no managesieve"),
        ({"pop3": {"listen": PORT, "uidl_format": "%v"}}, "", "pop3.uidl_format"),
        ({"tls": {"cert": "one.pem", "key": "two.key"}}, "", "does not match"),
        ({"tls": {"cert": "nowhere.pem"}}, "", "nowhere.pem"),
        ({"storage": {"encryption_keys": {}}}, "[storage.encryption_keys]\nk1 = 'nowhere.key'", "nowhere.key"),
        ({"auth": {"passwd_file": "nowhere"}}, "", 'nowhere": cannot be read'),
    ],
)
async def test_what_is_wrong_leaves_everything(
    service: Service, file: File, sections: dict[str, Any], extra: str, said: str
) -> None:
    logged, backend = Logged(service), service.backend
    before = (
        backend.parts.config,
        backend.logins["imap"].context.settings,
        backend.parts.store.env.settings,
        backend.parts.users,
    )
    users = before[-1]
    sections = {"quota": {"max_mail_size": "1M"}, "metacache": {"upload_interval": "1h"}, **sections}
    sections["storage"] = {"durability": "bucket", **sections.get("storage", {})}
    sections["storage"].pop("encryption_keys", None)
    file.change(extra, **sections)
    code, message = await service.fails("reload")
    assert code == 78
    assert said in message
    assert logged.lines == [("error", "reload failed, the old configuration stays", message)]
    assert (
        backend.parts.config,
        backend.logins["imap"].context.settings,
        backend.parts.store.env.settings,
        users,
    ) == before
    assert backend.parts.authenticator.users is users
    assert "t OK" in await login(service)
    file.change()
    assert await service.call("reload") == []
    file.change(quota={"max_mail_size": "1M"})
    assert names(await service.call("reload"), NOW) == ["quota.max_mail_size"]
