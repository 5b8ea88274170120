"""Makes the groups of events that the configuration asks for.

Only `parts.open` imports it, and only if there is a group: a backend without one starts
without the room `obox.events`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from importlib.metadata import entry_points
from typing import Final, cast

import structlog

from .config import Config
from .errors import ConfigError, NotFound
from .events import Context, Delivery, Events, EventSettings, Format, Group, Listener, Usage
from .events.news import News
from .store import MailStore
from .types import StorageId

log = structlog.get_logger()

ENTRY_POINTS: Final = "obox.listeners"
"""Each is called with a `Context` and returns a `Listener`. Its attribute `mode` may be
"sync"."""

THREADS: Final = 10
"""Threads in which listeners write files and send requests: as many as calls of a group
at the same time."""


def open_events(config: Config, store: MailStore, closing: AsyncExitStack) -> Events:
    """Make the groups, which follow the store's journal from now on. Raises
    ConfigError."""
    settings = config.events
    threads = ThreadPoolExecutor(THREADS, thread_name_prefix="listener")
    closing.callback(threads.shutdown, wait=False, cancel_futures=True)
    events = Events(
        store,
        list(_groups(config, Context(_usage_of(store)), threads)),
        EventSettings(cast(Format, settings.format), cast(Delivery, settings.delivery), max(settings.max_lag, 1.0)),
    )
    closing.push_async_callback(events.close)
    return events


def open_news(config: Config, store: MailStore, closing: AsyncExitStack) -> News:
    """Make the news between backends. Raises ConfigError."""
    from .events.nats import NatsBus

    cluster = config.cluster
    news = News(store, lambda news: NatsBus(cluster.events, cluster.backend, news))
    closing.push_async_callback(news.close)
    return news


def _groups(config: Config, context: Context, threads: ThreadPoolExecutor) -> list[Group]:
    settings, groups = config.events, []
    secret = _secret(config)
    if settings.audit_file is not None:
        from .events.audit import Audit

        groups.append(Group("audit", Audit(settings.audit_file, threads)))
    if settings.webhook_url:
        from .events.webhook import Poster, Webhook

        groups.append(Group("webhook", Webhook(Poster(settings.webhook_url, secret, threads, time.time))))
    if settings.quota_command is not None or settings.quota_url:
        from .events.quota import QuotaWarnings
        from .events.webhook import Poster

        poster = Poster(settings.quota_url, secret, threads, time.time) if settings.quota_url else None
        listener = QuotaWarnings(context, settings.quota_warnings, command=settings.quota_command, poster=poster)
        groups.append(Group("quota", listener))
    groups += [_own(name, context) for name in settings.listeners]
    names = [group.name for group in groups]
    if len(set(names)) < len(names):
        raise ConfigError(f"events.listeners: a name is used twice; allowed: none of {', '.join(sorted(names))}")
    return groups


def _own(name: str, context: Context) -> Group:
    """Load a site's own listener. Raises ConfigError."""
    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in found:
        known = ", ".join(sorted(found)) or "none"
        raise ConfigError(f'events.listeners: no "{name}" in the entry points {ENTRY_POINTS}; installed: {known}')
    try:
        make: Callable[[Context], Listener] = found[name].load()
        listener = make(context)
    except Exception as exc:
        raise ConfigError(f'events.listeners: "{name}" cannot be made: {exc!r}') from exc
    return Group(name, listener, "sync" if getattr(listener, "mode", "async") == "sync" else "async")


def _secret(config: Config) -> bytes:
    """Return the secret of webhooks. Raises ConfigError."""
    path = config.events.webhook_secret_file
    if path is None:
        return b""
    try:
        secret = path.read_bytes().strip()
    except OSError as exc:
        raise ConfigError(f'events.webhook_secret_file = "{path}": {exc.strerror}; allowed: a file') from exc
    if not secret:
        raise ConfigError(f'events.webhook_secret_file = "{path}": is empty; allowed: a secret')
    return secret


def _usage_of(store: MailStore) -> Callable[[str], Awaitable[Usage | None]]:
    """Return what a listener asks for the sums of a user."""

    async def usage(sid: str) -> Usage | None:
        try:
            user = await store.load_user(store.name_of(StorageId(sid)), StorageId(sid))
        except NotFound:
            return None
        return Usage(*user.usage())

    return usage
