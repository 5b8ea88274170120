"""What a configuration says that `obox serve` could not use on this machine, as far as
that is seen without side effects.

Invariant: nothing is made, bound or asked, but for the names of hosts.
This module does not know the user that `obox serve` will run as. A doubt is therefore a
warning.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from obox.config._settings import Config

_BUCKET = re.compile(r"(?!.*(\.\.|\.-|-\.))[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_IPV4 = re.compile(r"\d+\.\d+\.\d+\.\d+")


def doubts(config: Config) -> Iterator[str]:
    """Yield a line for each value that will probably stop `obox serve`."""
    yield from _addresses(config)
    yield from _directories(config)
    url = urlsplit(config.storage.url)
    if url.scheme == "s3" and (not _BUCKET.fullmatch(url.netloc) or _IPV4.fullmatch(url.netloc)):
        yield (
            f'storage.url: "{url.netloc}" is no bucket name by the rules of S3: 3 to 63 characters, lower-case '
            "letters, digits, dots and hyphens; some stores have others"
        )
    endpoint = urlsplit(config.storage.endpoint_url).hostname
    if endpoint and (reason := _unresolved(endpoint)):
        yield f'storage.endpoint_url: "{endpoint}" does not resolve: {reason}'


def _addresses(config: Config) -> Iterator[str]:
    for name in ("imap", "lmtp", "pop3", "managesieve", "http", "metrics", "socketmap"):
        section = getattr(config, name)
        for entry in () if section is None else section.listen:
            if entry.path is not None:
                if reason := _unusable(entry.path.parent, made=False):
                    yield f"{name}.listen {entry}: {reason}"
            elif reason := _unresolved(entry.host):
                yield f'{name}.listen {entry}: "{entry.host}" does not resolve: {reason}'
            elif not _here(entry.host):
                yield f'{name}.listen {entry}: "{entry.host}" is no address of this machine'


def _directories(config: Config) -> Iterator[str]:
    places = {
        "state_dir": config.state_dir,
        "fscache.path": config.fscache.path,
        "metacache.path": config.metacache.path,
    }
    url = urlsplit(config.storage.url)
    if url.scheme == "file":
        places["storage.url"] = Path(unquote(url.path))
    named: set[str] = set()
    for key, path in places.items():
        reason = _unusable(path, made=True)
        if reason and reason not in named:
            named.add(reason)
            yield f"{key} = {path}: {reason}"


def _unusable(path: Path, *, made: bool) -> str:
    """Why we could not write in a directory. made: `obox serve` makes it."""
    there = next(place for place in (path, *path.parents) if os.path.lexists(place))
    if not there.is_dir():
        return f"{there} is no directory"
    if there != path and not made:
        return f"{path} is not there"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there} cannot be written by this user"
    return ""


def _unresolved(host: str) -> str:
    try:
        socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


def _here(host: str) -> bool:
    """Return whether one of its addresses is of this machine. It is found with sockets,
    without a port."""
    for family, kind, number, _, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
        try:
            with socket.socket(family, kind, number) as probe:
                probe.bind(address)
                return True
        except OSError:
            continue
    return False
