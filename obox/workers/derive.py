"""It makes the configurations of a supervisor and of its workers.

Invariant: sizes of caches and of memory are totals, so each worker gets its part. A
worker listens on unix sockets in its own directory only. Only `make_secret` writes a
file.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from obox.config import Amount, Config, Http, Imap, Listen, Metacache
from obox.errors import ConfigError
from obox.serving import LOGINS

SPACE_BYTES_MIN: Final = 2 << 20
"""The smallest metacache."""
MEMORY_BYTES_MIN: Final = 16 << 20
"""The least memory for mails that are being received."""
SPOOL_BYTES_MIN: Final = 512 << 20
"""The least space for larger mails that are being received."""
SECRET: Final = "cluster.secret"
SECRET_BYTES: Final = 32


def names(config: Config) -> list[str]:
    """Return the names of the workers, in order."""
    return [f"{config.cluster.backend}-{number}" for number in range(1, config.server.workers + 1)]


def home(config: Config, number: int) -> Path:
    """Return the directory of a worker, which has its state and its sockets."""
    return config.state_dir / f"worker-{number}"


def of_worker(config: Config, number: int) -> Config:
    """Return the configuration of worker `number`, which is 1 or more."""
    workers, state = config.server.workers, home(config, number)
    cluster = replace(
        config.cluster,
        backend=f"{config.cluster.backend}-{number}",
        address=f"unix:{state}",
        directory=f"lmdb://{quote(str(config.state_dir / 'cluster'))}",
        secret_file=_secret_file(config),
    )
    fscache = config.fscache
    found = replace(
        config,
        state_dir=state,
        metacache=_metacache(config, number),
        fscache=replace(
            fscache, path=_place(config, fscache.path, "fscache", number), max_size=fscache.max_size // workers
        ),
        imap=_imap(config.imap, workers),
        http=Http(listen=(Listen(path=state / "http.sock"),)),
        metrics=None,
        socketmap=None,
        managesieve=None,
        tls=replace(config.tls, cert=(), key=()),
        cluster=cluster,
        server=replace(config.server, workers=1, unix_mode=0o600),
    )
    return replace(found, **{name: _listening(found, name) for name in (*LOGINS, "lmtp")})


def _listening(config: Config, protocol: str) -> Any:
    """Return the section of a protocol with its unix socket. None: there is none."""
    section = getattr(config, protocol)
    path = config.state_dir / f"{protocol}.sock"
    return None if section is None else replace(section, listen=(Listen(path=path),))


def of_front(config: Config) -> Config:
    """Return the configuration of the supervisor. `workers` and the totals stay as they
    are."""
    return replace(config, cluster=replace(config.cluster, secret_file=_secret_file(config)))


def make_secret(config: Config) -> None:
    """Make the secret of the link if there is none. Raises ConfigError."""
    path = _secret_file(config)
    if path != config.state_dir / SECRET or path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{SECRET}.new")
        with open(fresh, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(secrets.token_hex(SECRET_BYTES) + "\n")
        fresh.replace(path)
    except OSError as error:
        raise ConfigError(
            f'state_dir = "{config.state_dir}": {error.strerror}; allowed: a writable directory'
        ) from error


def _secret_file(config: Config) -> Path:
    return config.cluster.secret_file or config.state_dir / SECRET


def _place(config: Config, path: Path | None, name: str, number: int) -> Path:
    """Return the directory of a worker's cache: in its state, or below the setting."""
    if path is None or path == config.state_dir / name:
        return home(config, number) / name
    return path / f"worker-{number}"


def _metacache(config: Config, number: int) -> Metacache:
    whole, workers = config.metacache, config.server.workers
    grace = whole.max_grace
    return replace(
        whole,
        path=_place(config, whole.path, "metacache", number),
        max_space=max(SPACE_BYTES_MIN, whole.max_space // workers),
        max_grace=grace if grace.percent else Amount(grace.amount / workers),
    )


def _imap(whole: Imap | None, workers: int) -> Imap | None:
    if whole is None:
        return None
    return replace(
        whole,
        max_append_memory=max(MEMORY_BYTES_MIN, whole.max_append_memory // workers),
        max_append_spool=max(SPOOL_BYTES_MIN, whole.max_append_spool // workers),
    )


__all__ = ["home", "make_secret", "names", "of_front", "of_worker"]
