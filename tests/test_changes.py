"""Which differences between two configurations take effect while a backend runs."""

from pathlib import Path

import pytest

from obox.changes import changes
from obox.config import Config, load, settings

URL = {"OBOX_STORAGE__URL": "memory://"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "obox.toml"


def read(file: Path, text: str) -> Config:
    file.write_text(text)
    return load(str(file), URL)


def test_nothing_differs(file: Path) -> None:
    used = read(file, "[imap]")
    assert changes(used, read(file, "[imap]")) == (used, (), ())


def test_what_can_be_used_is_and_the_rest_stays(file: Path) -> None:
    used = read(file, "[imap]\nidle_timeout = '1h'\n[server]\nunix_mode = '0660'")
    new = read(file, "[imap]\nlisten = ['[::]:143']\nidle_timeout = '2h'\n[server]\nunix_mode = '0600'\n")
    config, applied, waiting = changes(used, new)
    assert (applied, waiting) == (("imap.idle_timeout",), ("imap.listen", "server.unix_mode"))
    assert used.imap
    assert config.imap
    assert config.imap.idle_timeout == 7200
    assert config.imap.listen == used.imap.listen
    assert config.server == used.server
    assert config.origins["imap.idle_timeout"] == f"{file}:3"
    assert config.origins["server.unix_mode"] == f"{file}:4"
    assert config.origins["imap.listen"] == "default"
    assert changes(config, new) == (config, (), waiting), "what waits goes on waiting"
    assert changes(config, used).applied == ("imap.idle_timeout",)


@pytest.mark.parametrize("name", ["imap", "lmtp", "pop3", "http", "metrics", "socketmap"])
def test_a_protocol_that_appears_or_goes_waits_with_all_of_it(file: Path, name: str) -> None:
    without = read(file, "")
    there = read(file, f"[{name}]\n" + ("max_recipients = 7" if name == "lmtp" else ""))
    for used, new in ((without, there), (there, without)):
        config, applied, waiting = changes(used, new)
        assert (applied, waiting) == ((), (f"{name}.listen",))
        assert getattr(config, name) == getattr(used, name)


def test_the_first_certificate_and_the_last_wait(file: Path) -> None:
    without, one = read(file, ""), read(file, "[tls]\ncert = 'a'\nkey = 'a'")
    other = read(file, "[tls]\ncert = ['a', 'b']\nkey = ['a', 'b']")
    for used, new in ((without, one), (one, without)):
        config, applied, waiting = changes(used, new)
        assert (applied, waiting) == ((), ("tls.cert", "tls.key"))
        assert config.tls == used.tls
    assert changes(one, other)[:2] == (other, ("tls.cert", "tls.key"))


def test_what_follows_from_another_setting_changes_with_it(file: Path) -> None:
    used, new = read(file, "[lmtp]"), read(file, "state_dir = '/s'\n[lmtp]\n[quota]\nmax_mail_size = '1M'")
    config, applied, waiting = changes(used, new)
    assert applied == ("lmtp.max_mail_size", "quota.max_mail_size")
    assert waiting == ("state_dir", "fscache.path", "metacache.path")
    assert config.lmtp
    assert config.lmtp.max_mail_size == 1 << 20


def test_the_order_of_keys_counts(file: Path) -> None:
    texts = (f"[storage.encryption_keys]\n{a} = '/{a}'\n{b} = '/{b}'" for a, b in ("xy", "yx"))
    used, new = (read(file, text) for text in texts)
    assert changes(used, new).waiting == ("storage.encryption_keys",)


def test_remotes_are_named_by_network(file: Path) -> None:
    used = read(file, '[remote."10.0.0.0/8"]\nimap.idle_timeout = "1h"\nimap.max_user_sessions = 7')
    new = read(file, '[remote."10.0.0.0/8"]\nimap.idle_timeout = "2h"\n[remote."::1"]\nstorage.autofix_storage = true')
    config, applied, waiting = changes(used, new)
    assert applied == (
        'remote."::1/128".storage.autofix_storage',
        'remote."10.0.0.0/8".imap.idle_timeout',
        'remote."10.0.0.0/8".imap.max_user_sessions',
    )
    assert waiting == ()
    assert config.remotes == new.remotes


def test_what_a_remote_may_say_needs_no_restart() -> None:
    assert not [row.key for row in settings() if row.remote and row.restart]


def test_addresses_need_a_restart() -> None:
    assert all(row.restart for row in settings() if row.name in ("listen", "state_dir", "path"))
