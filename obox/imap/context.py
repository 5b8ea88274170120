"""What all sessions of an IMAP server share."""

from __future__ import annotations

from dataclasses import dataclass, field

from obox import login
from obox.imap.intake import Intake
from obox.imap.settings import ImapSettings
from obox.mailbox.values import DATES_BYTES_MAX, TEXTS_BYTES_MAX, Dated, Ranked, Values


@dataclass(slots=True, kw_only=True)
class Context(login.Context[ImapSettings]):
    """intake: what APPEND receives in all sessions. texts, dates: what SORT and THREAD
    know of mails, by user, mailbox and criterion."""

    intake: Intake = field(init=False)
    texts: Values[Ranked] = field(init=False)
    dates: Values[Dated] = field(init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        self.intake = Intake(settings.spool_dir, settings.append_memory_max, settings.append_spool_max)
        self.texts, self.dates = Values(TEXTS_BYTES_MAX), Values(DATES_BYTES_MAX)
