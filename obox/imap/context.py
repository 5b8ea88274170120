"""What all sessions of an IMAP server share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from obox import login
from obox.imap.intake import Intake
from obox.imap.settings import ImapSettings

if TYPE_CHECKING:
    from obox.mailbox.values import Values
    from obox.sharing import Sharing


@dataclass(slots=True, kw_only=True)
class Context(login.Context[ImapSettings]):
    """intake: what APPEND receives in all sessions. values: what SORT and THREAD
    know of mails, once one of them was used. sharing: None: users share nothing."""

    intake: Intake = field(init=False)
    values: Values | None = None
    sharing: Sharing | None = None

    def __post_init__(self) -> None:
        settings = self.settings
        self.intake = Intake(settings.spool_dir, settings.append_memory_max, settings.append_spool_max)
