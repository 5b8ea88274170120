"""The settings of events (docs/events.md), a part of the table in `_settings`."""

# ruff: noqa: RUF009 - the rows of the table are fields, each with a new value

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from obox.config import _values as kinds
from obox.config._row import row as _set


@dataclass(frozen=True, slots=True)
class Events:
    """Listeners that hear of every change."""

    format: str = _set(kinds.choice("msgpack", "json"), "msgpack", "encoding of events in dead letters", restart=True)
    delivery: str = _set(
        kinds.choice("sync", "async", "mixed"),
        "mixed",
        "sync: each acknowledgement waits for the listeners, 5s at most; mixed: for those that ask for it",
        restart=True,
    )
    max_lag: float = _set(
        kinds.duration("1min"),
        "1d",
        "journal objects are kept for this time for a listener that is behind; then it has to rescan the users",
        restart=True,
    )
    listeners: tuple[str, ...] = _set(
        kinds.NAMES, "", "a site's own listeners, by their names in the entry point group obox.listeners", restart=True
    )
    audit_file: Path | None = _set(
        kinds.OPTIONAL_PATH, "", "file to which each event is appended as a line of JSON; empty: none", restart=True
    )
    webhook_url: str = _set(
        kinds.url("an http:// or https:// URL, or empty", "http", "https", optional=True),
        "",
        "gets a POST for new mails; empty: none",
        restart=True,
    )
    webhook_secret_file: Path | None = _set(
        kinds.OPTIONAL_PATH,
        "",
        "file with the secret that signs requests of webhooks; empty: no signature",
        restart=True,
    )
    quota_warnings: tuple[int, ...] = _set(
        kinds.PERCENTS,
        "80,95",
        "a warning comes when a user's mail grows beyond such a share of the quota",
        restart=True,
    )
    quota_command: Path | None = _set(
        kinds.OPTIONAL_PATH, "", "program that is run for a warning, with user and percent; empty: none", restart=True
    )
    quota_url: str = _set(
        kinds.url("an http:// or https:// URL, or empty", "http", "https", optional=True),
        "",
        "gets a POST for a warning; empty: none",
        restart=True,
    )
