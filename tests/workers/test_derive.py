"""The configuration with which each worker runs."""

from __future__ import annotations

import dataclasses
import pickle
import stat
from pathlib import Path

import pytest

from obox.config import Amount, Config, load, settings
from obox.errors import ConfigError
from obox.workers import derive
from obox.workers.orders import LENGTH, Start

LISTEN = [row.section for row in settings() if row.name == "listen"]


def config_of(path: Path, **settings: str) -> Config:
    environ = {
        "OBOX_STATE_DIR": str(path),
        "OBOX_STORAGE__URL": f"file://{path}/bucket",
        "OBOX_SERVER__WORKERS": "4",
        "OBOX_CLUSTER__BACKEND": "mail",
        **{f"OBOX_{name.upper()}__LISTEN": "127.0.0.1:0" for name in LISTEN},
        **{f"OBOX_{name}": value for name, value in settings.items()},
    }
    return load(None, environ)


def test_sizes_are_totals_and_no_state_is_shared(tmp_path: Path) -> None:
    whole = config_of(
        tmp_path,
        METACACHE__MAX_SPACE="1G",
        METACACHE__MAX_GRACE="100M",
        FSCACHE__MAX_SIZE="2G",
        IMAP__MAX_APPEND_MEMORY="256M",
        IMAP__MAX_APPEND_SPOOL="4G",
        FSCACHE__PATH=str(tmp_path / "fast"),
    )
    workers = [derive.of_worker(whole, number) for number in (1, 2, 3, 4)]
    assert [one.cluster.backend for one in workers] == derive.names(whole) == ["mail-1", "mail-2", "mail-3", "mail-4"]
    assert sum(one.metacache.max_space for one in workers) == whole.metacache.max_space
    assert sum(one.metacache.max_grace.of(0) for one in workers) == whole.metacache.max_grace.of(0)
    assert sum(one.fscache.max_size for one in workers) == whole.fscache.max_size
    assert whole.imap is not None
    assert sum(one.imap.max_append_memory for one in workers if one.imap) == whole.imap.max_append_memory
    assert sum(one.imap.max_append_spool for one in workers if one.imap) == whole.imap.max_append_spool
    places = [(one.state_dir, one.metacache.path, one.fscache.path) for one in workers]
    assert len({place for of in places for place in of}) == 12
    assert workers[1].fscache.path == tmp_path / "fast/worker-2"
    assert workers[1].metacache.path == tmp_path / "worker-2/metacache"
    assert all(one.metrics is None and not one.tls.cert and one.server.workers == 1 for one in workers)
    parts = [getattr(one, field.name) for one in workers for field in dataclasses.fields(one)]
    listens = [entry for part in parts for entry in getattr(part, "listen", ())]
    assert len({entry.path for entry in listens}) == len(listens) == 16 < 4 * len(LISTEN)
    assert all(entry.path and entry.path.is_relative_to(tmp_path) for entry in listens)


def test_a_worker_has_the_least_that_it_needs(tmp_path: Path) -> None:
    whole = config_of(tmp_path, METACACHE__MAX_SPACE="4M", IMAP__MAX_APPEND_MEMORY="16M", IMAP__MAX_APPEND_SPOOL="1G")
    one = derive.of_worker(whole, 1)
    assert one.imap is not None
    sizes = (one.metacache.max_space, one.imap.max_append_memory, one.imap.max_append_spool)
    assert sizes == (2 << 20, 16 << 20, 512 << 20)
    assert one.metacache.max_grace == Amount(10, percent=True)


def test_all_share_a_secret_which_others_cannot_read(tmp_path: Path) -> None:
    whole = config_of(tmp_path / "state")
    derive.make_secret(whole)
    path = derive.of_front(whole).cluster.secret_file
    assert path is not None
    assert derive.of_worker(whole, 3).cluster.secret_file == path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(before := path.read_text().strip()) == 64
    derive.make_secret(whole)
    assert path.read_text().strip() == before
    given = config_of(tmp_path, CLUSTER__SECRET_FILE=str(tmp_path / "given"))
    derive.make_secret(given)
    assert not (tmp_path / "given").exists(), "a file that was named is not made"
    assert derive.of_front(given).cluster.secret_file == tmp_path / "given"


def test_a_start_has_all_settings_and_secrets(tmp_path: Path) -> None:
    config = config_of(tmp_path, STORAGE__ACCESS_KEY_ID="id", STORAGE__SECRET_ACCESS_KEY="hidden")
    data = Start(derive.of_worker(config, 2), 2, 4, (("server.workers", 4),)).encode()
    assert LENGTH.unpack(data[: LENGTH.size]) == (len(data) - LENGTH.size,)
    found = pickle.loads(data[LENGTH.size :])
    assert dataclasses.asdict(found) == dataclasses.asdict(Start(derive.of_worker(config, 2), 2, 4, found.overrides))
    assert found.config.storage.secret_access_key.reveal() == "hidden"
    assert found.name == "mail-2"


@pytest.mark.parametrize(
    ("name", "value"), [("CLUSTER__DIRECTORY", "lmdb:///var/lib/obox/cluster"), ("STORAGE__URL", "memory://")]
)
def test_what_workers_cannot_share_is_refused(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=r"^server\.workers = 4 .*; allowed: 1"):
        config_of(tmp_path, **{name: value, "CLUSTER__SECRET_FILE": "secret"})
