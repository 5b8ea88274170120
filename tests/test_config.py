"""The contract of the configuration: its sources and their order, the words of each
kind of value, and a line for each mistake."""

import tomllib
from pathlib import Path

import pytest

from obox import config
from obox.config import (
    Amount,
    Config,
    Listen,
    NewMailbox,
    Secret,
    by_client,
    describe,
    load,
    mask_url,
    read_priority_weights,
    read_size_weights,
)
from obox.errors import ConfigError

URL = {"OBOX_STORAGE__URL": "memory://"}


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def env(**values: str) -> Config:
    return load(None, {**URL, **{"OBOX_" + name: text for name, text in values.items()}})


def refusal(environ: dict[str, str] | None = None, path: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, {**URL, **(environ or {})})
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_no_file_and_a_url_is_a_valid_start() -> None:
    got = load(None, URL)
    assert got.file is None
    assert got.storage.url == "memory://"
    assert got.state_dir == Path("/var/lib/obox")
    assert got.fscache.path == Path("/var/lib/obox/fscache")
    assert got.metacache.max_grace.of(got.metacache.max_space) == (1 << 30) // 10
    assert got.cluster.backend
    for name in ("imap", "lmtp", "pop3", "managesieve", "http", "metrics", "socketmap"):
        assert getattr(got, name) is None, "an absent section is off"


def test_without_a_url_there_is_no_start() -> None:
    with pytest.raises(ConfigError, match=r"storage\.url is not set.*OBOX_STORAGE__URL.*s3://bucket/prefix"):
        load(None, {})


def test_search_order(tmp_path: Path) -> None:
    def state(path: str | None, environ: dict[str, str]) -> str:
        return load(path, {**URL, **environ}).state_dir.name

    named = write(tmp_path / "named.toml", 'state_dir = "named"')
    by_env = write(tmp_path / "env.toml", 'state_dir = "env"')
    write(tmp_path / "xdg/obox/obox.toml", 'state_dir = "xdg"')
    write(tmp_path / "home/.config/obox/obox.toml", 'state_dir = "home"')
    places = {"XDG_CONFIG_HOME": str(tmp_path / "xdg"), "HOME": str(tmp_path / "home")}
    assert state(named, {"OBOX_CONFIG": by_env, **places}) == "named"
    assert state(None, {"OBOX_CONFIG": by_env, **places}) == "env"
    assert state(None, places) == "xdg"
    assert state(None, {"HOME": places["HOME"]}) == "home"
    for path, environ in (("/nowhere/obox.toml", {}), (None, {"OBOX_CONFIG": "/nowhere/obox.toml"})):
        with pytest.raises(ConfigError, match="no such file"):
            load(path, environ)


def test_file_environment_overrides(tmp_path: Path) -> None:
    path = write(
        tmp_path / "obox.toml",
        """state_dir = "state"
# a comment
[storage]
url = "s3://bucket/prefix"
encryption_keys = { k2 = "keys/2", k1 = "/keys/1" }

[imap]
[lmtp]
listen = ["unix:lmtp.sock"]
""",
    )
    got = load(path, {"OBOX_STORAGE__COMPRESS": "none"}, overrides=[("imap.listen", "127.0.0.1:0")])
    assert got.state_dir == tmp_path / "state"
    assert got.storage.encryption_keys == {"k2": tmp_path / "keys/2", "k1": Path("/keys/1")}
    assert list(got.storage.encryption_keys) == ["k2", "k1"], "the first encrypts"
    assert got.storage.zstd_level == 0
    assert got.auth.passwd_file == tmp_path / "users"
    assert got.imap
    assert got.imap.listen == (Listen("127.0.0.1", 0),)
    assert got.lmtp
    assert got.lmtp.listen == (Listen(path=tmp_path / "lmtp.sock"),)
    assert got.lmtp.max_mail_size == got.quota.max_mail_size == 50 << 20
    assert got.origins["state_dir"] == f"{path}:1"
    assert got.origins["storage.url"] == f"{path}:4"
    assert got.origins["storage.encryption_keys"] == f"{path}:5"
    assert got.origins["lmtp.listen"] == f"{path}:9"
    assert got.origins["storage.compress"] == "OBOX_STORAGE__COMPRESS"
    assert got.origins["imap.listen"] == "command line"
    assert got.origins["auth.passwd_file"] == "default"


def test_lines_of_other_ways_to_write_toml(tmp_path: Path) -> None:
    text = 'storage.url = "memory://"\nfscache = { max_size = "2G" }\n[ "auth" ]\n"cache_ttl"="0"'
    path = write(tmp_path / "o.toml", text)
    got = load(path, {})
    assert [got.origins[key][-1] for key in ("storage.url", "fscache.max_size", "auth.cache_ttl")] == ["1", "2", "4"]
    path = write(tmp_path / "p.toml", '[storage]\nurl = "memory://"\n[storage.encryption_keys]\na = "b"')
    assert load(path, {}).origins["storage.encryption_keys"].endswith(":3")


def test_no_listen_is_off_too() -> None:
    assert env(IMAP__LISTEN="").imap is None
    assert env(IMAP__MAX_LINE_LENGTH="8K").imap is not None


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [("512M", 512 << 20), ("1G", 1 << 30), ("1.5k", 1536), ("2TB", 2 << 40), ("7", 7), ("1 MiB", 1 << 20)],
)
def test_sizes(text: str, bytes_: int) -> None:
    assert env(FSCACHE__MAX_SIZE=text).fscache.max_size == bytes_


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2s", 2), ("5min", 300), ("1d", 86400), ("8h", 28800), ("500ms", 0.5), ("2secs", 2), ("0", 0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert env(STORAGE__DELETE_DELAY=text).storage.delete_delay == seconds


@pytest.mark.parametrize("text", ["2s", "500ms", "90min", "36h", "1234567s", "12345678ms", "1000001s", "33.3ms", "0s"])
def test_durations_are_shown_as_they_are_written(text: str, tmp_path: Path) -> None:
    """A time above a million seconds used to be shown with an exponent, and could not
    be read again."""
    first = env(STORAGE__DELETE_DELAY=text)
    shown = describe(first, changed_only=True)
    assert f'delete_delay = "{text}"' in shown
    again = load(write(tmp_path / "again.toml", shown), {})
    assert again.storage.delete_delay == first.storage.delete_delay


def test_lists_percents_flags_mailboxes() -> None:
    got = env(
        METACACHE__MAX_GRACE="64M", METACACHE__SYNC="no", MAILBOXES__CREATE="Sent Items \\Sent, Notes",
        TLS__CERT="a.pem,b.pem", TLS__KEY="a.key,b.key", SERVER__UNIX_MODE="0600",
        STORAGE__ENCRYPTION_KEYS="new=/k/new, old=/k/old",
    )  # fmt: skip
    assert got.metacache.max_grace == Amount(64 << 20)
    assert got.metacache.sync is False
    assert got.mailboxes.create == (NewMailbox("Sent Items", "\\Sent"), NewMailbox("Notes"))
    assert [path.name for path in got.tls.cert] == ["a.pem", "b.pem"]
    assert got.server.unix_mode == 0o600
    assert list(got.storage.encryption_keys) == ["new", "old"]
    assert read_priority_weights(got.metacache.priority_weights)[2] == (50.0, 3600.0)
    assert read_size_weights(got.metacache.size_weights) == ((2 << 20, 30.0), (1 << 30, 120.0))


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("127.0.0.1:1143", Listen("127.0.0.1", 1143)),
        ("[::1]:143", Listen("::1", 143)),
        ("mail.example:993/tls", Listen("mail.example", 993, tls=True)),
        ("[::]:993/tls/proxy", Listen("::", 993, tls=True, proxy=True)),
        ("0.0.0.0:143/proxy", Listen("0.0.0.0", 143, proxy=True)),
        ("unix:/run/obox.sock", Listen(path=Path("/run/obox.sock"))),
        ("unix:/run/obox.sock/proxy", Listen(path=Path("/run/obox.sock"), proxy=True)),
    ],
)
def test_listen(text: str, want: Listen) -> None:
    got = load(None, {**URL, "OBOX_IMAP__LISTEN": text, "OBOX_TLS__CERT": "c", "OBOX_TLS__KEY": "k"})
    assert got.imap
    assert got.imap.listen == (want,)
    assert str(want) == text
    assert want.loopback == ("127" in text or "[::1]" in text or "unix" in text)


BAD = [
    ("STORAGE__URL", "ftp://host", "file:///dir, memory://, s3://bucket/prefix"),
    ("STORAGE__URL", "s3://", "s3://bucket/prefix"),
    ("STORAGE__URL", "file://relative/dir", "file:///dir"),
    ("STORAGE__COMPRESS", "zstd:99", '"zstd:19"'),
    ("STORAGE__DURABILITY", "some", '"local" or "bucket"'),
    ("STORAGE__JOURNAL_INTERVAL", "1min", "at most 5s"),
    ("STORAGE__DELETE_DELAY", "12", "a time with its unit"),
    ("STORAGE__ENCRYPTION_KEYS", "justaname", "key ids and files"),
    ("STORAGE__ACCESS_KEY_ID", "me", "together with storage.secret_access_key"),
    ("FSCACHE__MAX_SIZE", "lots", "powers of 1024"),
    ("METACACHE__MAX_GRACE", "101%", "10%"),
    ("METACACHE__MAX_SPACE", "1M", "at least 2M"),
    ("METACACHE__PRIORITY_WEIGHTS", "10% +1d", "each priority"),
    ("METACACHE__SYNC", "perhaps", "true or false"),
    ("IMAP__LISTEN", "1143", "host:port"),
    ("IMAP__LISTEN", "::1:143", "host:port"),
    ("IMAP__LISTEN", "127.0.0.1:70000", "host:port"),
    ("IMAP__LISTEN", "127.0.0.1:1,127.0.0.1:1", "host:port"),
    ("IMAP__LISTEN", "127.0.0.1:993/tls", "tls.cert and tls.key"),
    ("IMAP__MAX_PIPELINED_COMMANDS", "0", "from 1 to 1000"),
    ("LMTP__TRUSTED_NETWORKS", "10.0.0.1/8", "10.0.0.0/8"),
    ("IMAP__FETCH_FAILURE", "maybe", '"disconnect-immediately" or "disconnect-after" or "no-after"'),
    ("STORAGE__AUTOFIX_STORAGE", "maybe", "true or false"),
    ("STORAGE__LOST_MAILBOX_PREFIX", "a/b", "letters, digits"),
    ("STORAGE__LOST_MAILBOX_PREFIX", "", "1 to 50"),
    ("TLS__CERT", "a,b", "one key for each certificate"),
    ("CLUSTER__DIRECTORY", "redis://x", "cassandra://"),
    ("SERVER__WORKERS", "4", "allowed: 1"),
    ("CLUSTER__EVENTS", "nats://127.0.0.1:4222", 'allowed: "local"'),
    ("CLUSTER__DIRECTORY", "lmdb:///var/lib/obox/cluster", "allowed: together with cluster.secret_file"),
    ("STORAGE__URL", "s3://my bucket", "s3://bucket/prefix"),
    ("STORAGE__URL", "s3://my%20bucket", "a bucket name of 3 to 255"),
    ("STORAGE__URL", "s3://ab/mail", "a bucket name of 3 to 255"),
    ("STORAGE__URL", "s3://host:9000/mail", "a bucket name of 3 to 255"),
    ("MAILBOXES__CREATE", "Sent \\Gone", "RFC 6154"),
    ("MAILBOXES__CREATE", "inbox", "RFC 6154"),
    ("LOG__LEVEL", "loud", '"debug"'),
]


@pytest.mark.parametrize(("name", "text", "allowed"), BAD)
def test_a_bad_value_names_key_value_and_what_is_allowed(name: str, text: str, allowed: str) -> None:
    message = refusal({"OBOX_" + name: text})
    assert message.startswith(name.lower().replace("__", "."))
    assert text.partition(",")[0].replace("\\", "\\\\") in message
    assert "allowed: " in message
    assert allowed in message


def test_the_same_address_twice() -> None:
    message = refusal({"OBOX_IMAP__LISTEN": "127.0.0.1:24", "OBOX_LMTP__LISTEN": "127.0.0.1:24"})
    assert "the same address as in imap.listen" in message
    message = refusal({"OBOX_IMAP__LISTEN": "127.0.0.1:24,127.0.0.1:24"})
    assert "the same entry twice; allowed: a list" in message


@pytest.mark.parametrize("more", [{"OBOX_SERVER__WORKERS": "2"}, {"OBOX_CLUSTER__DIRECTORY": "lmdb:///var/lib/d"}])
def test_only_a_backend_alone_may_overwrite(more: dict[str, str], tmp_path: Path) -> None:
    environ = {"OBOX_STORAGE__URL": "s3://mail", "OBOX_STORAGE__CONDITIONAL_PUT": "off"}
    assert load(None, environ).storage.conditional_put == "off"
    message = refusal({**environ, **more, "OBOX_CLUSTER__SECRET_FILE": str(tmp_path)})
    assert message.startswith('storage.conditional_put = "off"')
    assert 'allowed: with server.workers = 1 and cluster.directory = "local"' in message


def test_a_network_with_host_bits_says_so() -> None:
    message = refusal({"OBOX_LMTP__TRUSTED_NETWORKS": "10.0.0.1/8"})
    assert "10.0.0.1/8 has host bits set; allowed: a list" in message


def test_unknown_keys_say_the_nearest() -> None:
    assert "did you mean imap.listen?" in refusal({"OBOX_IMAP__LISTN": "x"})
    assert "did you mean storage.url?" in refusal({"OBOX_STORGE__URL": "x"})
    assert "known sections: storage, fscache" in refusal({"OBOX_QQQQ__WWWW": "x"})
    # These names belong to other programs.
    load(None, {**URL, "OBOX_TEST_NO_SKIP": "1", "OBOX_PORT_143_TCP": "x"})


def test_mistakes_in_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.toml", "[imap]\n\nlissten = []")
    assert f"imap.lissten ({path}:3): unknown setting; did you mean imap.listen?" in refusal(path=path)
    path = write(tmp_path / "b.toml", "stat_dir = 1")
    assert f"stat_dir ({path}:1): unknown setting; did you mean state_dir?" in refusal(path=path)
    path = write(tmp_path / "c.toml", "[fscache]\nmax_size = -1")
    assert f"fscache.max_size = -1 ({path}:2): allowed: a size" in refusal(path=path)
    path = write(tmp_path / "d.toml", "imap = true")
    assert "allowed: [imap]" in refusal(path=path)
    path = write(tmp_path / "e.toml", "[imap\n")
    assert f"{path}: is not TOML: " in refusal(path=path)
    path = write(tmp_path / "f.toml", "[metacache]\nmax_rescan_mail_count = true")
    assert f"max_rescan_mail_count = true ({path}:2): allowed: a whole number" in refusal(path=path)
    path = write(tmp_path / "g.toml", "[imap]\nlisten = [1143]")
    assert "imap.listen = [1143]" in refusal(path=path)


def test_secrets(tmp_path: Path) -> None:
    file = write(tmp_path / "secret", "hush\n")
    got = env(STORAGE__ACCESS_KEY_ID="me", STORAGE__SECRET_ACCESS_KEY_FILE=file)
    assert got.storage.secret_access_key.reveal() == "hush"
    assert got.origins["storage.secret_access_key"] == "OBOX_STORAGE__SECRET_ACCESS_KEY_FILE"
    assert "hush" not in repr(got) + describe(got)
    assert not Secret()
    assert Secret("a") == Secret("a") != Secret("b")
    both = {"OBOX_STORAGE__SECRET_ACCESS_KEY_FILE": file, "OBOX_STORAGE__SECRET_ACCESS_KEY": "hush"}
    assert "allowed: one of them" in refusal(both)
    assert "a readable file" in refusal({"OBOX_HTTP__API_KEY_FILE": "/nowhere"})
    assert "unknown setting" in refusal({"OBOX_STORAGE__URL_FILE": file})
    assert env(AUTH__PASSWD_FILE="/u").auth.passwd_file == Path("/u"), "a setting's own name may end so"
    path = write(tmp_path / "o.toml", "[http]\napi_key = 12345")
    assert "12345" not in refusal(path=path)
    assert mask_url("nats://u:pw@host:1") == "nats://u:********@host:1"


def test_describe_is_toml_that_loads_again(tmp_path: Path) -> None:
    first = env(IMAP__LISTEN="unix:x", HTTP__LISTEN="[::1]:1/proxy", LOG__LEVEL="debug")
    text = describe(first)
    assert "# [lmtp] is off" in text
    assert 'level = "debug"  # OBOX_LOG__LEVEL\n' in text
    assert 'format = "auto"  # default; restart\n' in text
    assert "state_dir" in tomllib.loads(text)
    second = load(write(tmp_path / "again.toml", text), {})
    for name in config.SECTIONS:
        assert getattr(second, name) == getattr(first, name)


def test_describe_without_defaults(tmp_path: Path) -> None:
    text = '[imap]\nlisten = ["127.0.0.1:1143"]\nidle_timeout = "1h"\n[http]\n[storage]\nurl = "memory://"\n'
    path = write(tmp_path / "o.toml", text + '[log]\nlevel = "info"\n')
    first = load(path, {"OBOX_HTTP__API_KEY": "hush"})
    shown = describe(first, changed_only=True)
    settings = [line.partition("  #")[0] for line in shown.splitlines() if line and not line.startswith("#")]
    assert settings == ["[storage]", 'url = "memory://"', "[imap]", 'idle_timeout = "1h"', "[http]",
                        'api_key = "********"']  # fmt: skip
    second = load(write(tmp_path / "again.toml", shown.replace("********", "hush")), {})
    for name in config.SECTIONS:
        assert getattr(second, name) == getattr(first, name)


def test_sections_have_their_defaults_without_load() -> None:
    assert config.Imap().listen == (Listen("127.0.0.1", 1143),)
    assert config.Metacache() == config.Metacache()
    assert config.Storage(url="memory://").deadline == 10


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("", 0), ("1700000000", 1700000000), ("2026-01-31T04:00:00Z", 1769832000), (7, 7)],
)
def test_moments(text: object, seconds: float) -> None:
    kind = next(row.kind for row in config.settings() if row.name == "refresh_index_once_after")
    assert kind.parse(text, Path()) == seconds


@pytest.mark.parametrize("text", ["soon", "2026-01-31T04:00:00", -1, True, "2026-13-01T00:00:00Z"])
def test_no_moments(text: object) -> None:
    kind = next(row.kind for row in config.settings() if row.name == "refresh_index_once_after")
    with pytest.raises(ValueError):  # noqa: PT011 - any: the caller says what is allowed
        kind.parse(text, Path())


# -- [remote] ----------------------------------------------------------------------------------------------------------

REMOTES = """
[imap]
fetch_failure = "no-after"
[remote."10.0.0.0/8"]
imap.fetch_failure = "disconnect-after"
storage.autofix_storage = true
[remote."2001:db8::/32"]
imap = { max_user_sessions = 3 }
[remote."10.1.0.0/16".imap]
fetch_failure = "disconnect-immediately"
"idle_timeout" = "5min"
[remote."0.0.0.0/0"]
"auth.disable_plaintext_auth" = false
"""


def seen(config: Config) -> tuple[object, ...]:
    assert config.imap
    imap = config.imap
    plain = not config.auth.disable_plaintext_auth
    return imap.fetch_failure, config.storage.autofix_storage, imap.idle_timeout, imap.max_user_sessions, plain


@pytest.mark.parametrize(
    ("address", "want"),
    [
        ("10.1.2.3", ("disconnect-immediately", True, 300, 50, True)),
        ("::ffff:10.1.2.3", ("disconnect-immediately", True, 300, 50, True)),
        ("10.2.3.4", ("disconnect-after", True, 1800, 50, True)),
        ("11.2.3.4", ("no-after", False, 1800, 50, True)),
        ("2001:db8::1", ("no-after", False, 1800, 3, False)),
        ("2001:db8::1%eth0", ("no-after", False, 1800, 3, False)),
        ("2001:db9::1", ("no-after", False, 1800, 50, False)),
        ("", ("no-after", False, 1800, 50, False)),
        ("nonsense", ("no-after", False, 1800, 50, False)),
    ],
)
def test_the_most_specific_network_wins_setting_by_setting(
    tmp_path: Path, address: str, want: tuple[object, ...]
) -> None:
    config = load(write(tmp_path / "o.toml", REMOTES), URL)
    assert by_client(config, seen)(address) == want
    assert seen(config) == ("no-after", False, 1800, 50, False), "the configuration itself is everybody's"


def test_what_follows_from_a_remote_is_made_once_for_each_network(tmp_path: Path) -> None:
    config = load(write(tmp_path / "o.toml", REMOTES), URL)
    made: list[Config] = []
    find = by_client(config, lambda config: made.append(config) or config)
    assert find("10.1.2.3") is find("10.1.9.9") is not find("10.2.0.1")
    assert len(made) == 1 + len(config.remotes)


def test_a_remote_turns_no_protocol_on(tmp_path: Path) -> None:
    config = load(write(tmp_path / "o.toml", '[remote."10.0.0.0/8"]\nimap.fetch_failure = "no-after"'), URL)
    assert config.imap is None
    assert by_client(config, lambda config: config.imap)("10.0.0.1") is None


def test_remotes_are_shown_with_their_origin_and_load_again(tmp_path: Path) -> None:
    path = write(tmp_path / "o.toml", REMOTES)
    first = load(path, URL)
    text = describe(first)
    assert f'[remote."10.0.0.0/8"]\nimap.fetch_failure = "disconnect-after"  # {path}:5\n' in text
    assert f'imap.idle_timeout = "5min"  # {path}:11\n' in text
    assert f"imap.max_user_sessions = 3  # {path}:7\n" in text, "an inline table: the line of its section"
    assert f"auth.disable_plaintext_auth = false  # {path}:13\n" in text
    assert load(write(tmp_path / "again.toml", text), {}).remotes == first.remotes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[remote."10.0.0.1/8"]', 'remote."10.0.0.1/8" (FILE:1): 10.0.0.1/8 has host bits set; allowed: a network'),
        ('[remote."webmail"]', 'remote."webmail" (FILE:1): '),
        ('[remote."10.0.0.0/8"]\n\nimap.fetch_failur = 1',
         'remote."10.0.0.0/8".imap.fetch_failur (FILE:3): unknown setting; did you mean imap.fetch_failure?'),
        ('[remote."::1"]\nfetch_failure = "x"', "did you mean imap.fetch_failure?"),
        ('[remote."::1".imap]\nfetch_failure = "x"',
         'remote."::1".imap.fetch_failure = "x" (FILE:2): allowed: "disconnect-immediately" or'),
        ('[remote."::1"]\nstorage.url = "memory://"',
         'remote."::1".storage.url = "memory://" (FILE:2): is the same for all clients; allowed here: storage.autofix'),
        ('[remote."::1"]\nhttp.api_key = "hush"', 'remote."::1".http.api_key = ********'),
        ('[remote."::1"]\n[remote."::1/128"]', "::1/128 a second time"),
        ("[remote]\nimap = 1", 'allowed: [remote."10.0.0.0/8"]'),
        ("remote = 1", 'allowed: [remote."10.0.0.0/8"]'),
    ],
)  # fmt: skip
def test_mistakes_in_a_remote(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path / "o.toml", text)
    assert said.replace("FILE", path) in refusal(path=path)
