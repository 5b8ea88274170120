"""A session: its state, and how it begins and ends.

A session has a user and a maildrop after the login. `obox.login.session` has what is
not specific to POP3. When the connection is gone, nothing is deleted, whatever was
marked: only QUIT deletes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from obox import login
from obox.accounts import Account
from obox.auth import LINK
from obox.errors import OboxError
from obox.mailbox.names import INBOX
from obox.pop3.context import Context
from obox.pop3.maildrop import Maildrop
from obox.pop3.replies import Reply
from obox.pop3.settings import Pop3Settings
from obox.store.api import User
from obox.types import StorageId

if TYPE_CHECKING:
    from obox.login.needs import Channel

BAD_LOGIN: Final = ("AUTH", LINK)
"""Response codes of a login that counts as failed. The second is for a member of the
cluster alone, which thus knows that its own proof is meant, and not the user's."""
LEFT: Final = "logout"
"""Why a connection ends after QUIT, for the log."""


class Session(login.Session[Pop3Settings]):
    """See the module's text. `out` is the connection."""

    __slots__ = ("_locked", "deleted", "maildrop", "name", "retrieved")

    context: Context

    def __init__(self, context: Context, out: Channel[Pop3Settings]) -> None:
        super().__init__(context, out)
        self.name = ""
        """What the client has sent with USER."""
        self.maildrop: Maildrop | None = None
        self.retrieved = self.deleted = 0
        self._locked: StorageId | None = None

    def greeting(self) -> bytes:
        return Reply(f"{self.settings.name} ready").wire()

    def shown(self) -> tuple[str, str]:
        return ("transaction", INBOX) if self.user is not None else ("authorization", "")

    # -- answers ---------------------------------------------------------------------------------------------------

    def answer(self, name: str, reply: Reply, *, bad: bool = False) -> None:
        """Write the first line of an answer, and count it.

        Too many failed logins, or bad commands in a row, end the session.
        """
        self.write(reply.wire())
        self.count(name, "OK" if reply.ok else "ERR", bad=bad)
        if reply.code in BAD_LOGIN:
            self.count_failed_login()

    def end(self, reason: str) -> None:
        """Send what is gathered, and close."""
        self.out.ended = reason
        self.out.close()

    # -- life ------------------------------------------------------------------------------------------------------

    async def open(self, account: Account) -> User:
        """Take a verified user's mail. Raises: InUse, TooSoon, Limit, Unavailable."""
        context, settings, user = self.context, self.settings, None
        try:
            if settings.lock_session:
                context.lock(account.storage_id)
                self._locked = account.storage_id
            if settings.login_delay_s:
                context.check_delay(account.storage_id, settings.login_delay_s)
            user = await context.open_user(account)
            mailbox = await user.select(INBOX)
            try:
                self.maildrop = Maildrop(mailbox, settings)
            except BaseException:
                await mailbox.release()
                raise
            if settings.login_delay_s:
                context.note_login(account.storage_id)
            return user
        finally:
            if self.maildrop is None:
                self._unlock()
                if user is not None:
                    await user.release()

    async def mark_seen(self) -> None:
        """Make mails \\Seen that RETR has read. A failure is only logged: the mails
        matter more than their flag."""
        maildrop = self.maildrop
        if maildrop is None or not maildrop.read or not self.settings.mark_seen:
            return
        uids = maildrop.read_uids()
        maildrop.read.clear()
        try:
            await maildrop.mailbox.store_flags(uids, "add", ["\\Seen"])
        except OboxError as error:
            self.context.log.warning("\\Seen not set", user=self.user_name, error=str(error))

    async def leave_user(self, reason: str) -> None:
        maildrop, user = self.maildrop, self.user
        assert maildrop is not None
        assert user is not None
        try:
            await self.mark_seen()
        finally:
            self.maildrop = self.user = None
            self._unlock()
            maildrop.close()
            await maildrop.mailbox.release()
            await user.release()
            out = self.out
            self.context.log.info(
                "pop3 logout",
                user=self.user_name,
                remote=out.remote,
                session=out.id,
                reason=reason,
                commands=self.commands,
                retrieved=self.retrieved,
                deleted=self.deleted,
                bytes_in=out.bytes_in,
                bytes_out=out.bytes_out,
                duration_s=round(out.duration_s, 3),
            )

    def _unlock(self) -> None:
        if self._locked is not None:
            self.context.locked.discard(self._locked)
            self._locked = None
