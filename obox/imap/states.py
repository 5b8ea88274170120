"""Which command is allowed when: the four states of RFC 9051 §3 as a table.

    connection --greeting--> NOT_AUTHENTICATED --LOGIN, AUTHENTICATE--> AUTHENTICATED
    AUTHENTICATED --SELECT, EXAMINE--> SELECTED
    SELECTED --CLOSE, UNSELECT, a failed SELECT, the mailbox deleted--> AUTHENTICATED
    AUTHENTICATED, SELECTED --UNAUTHENTICATE--> NOT_AUTHENTICATED
    any --LOGOUT, BYE--> LOGOUT

The state is not stored. It follows from whether the session has a user and a mailbox
(`Session.state`), so it cannot contradict them. A command that is not in the row of the
state is answered BAD with the reason. The handlers of STARTTLS and LOGIN check what
they need beside the state (TLS, a loopback peer).
"""

from __future__ import annotations

from typing import Final

from obox.imap import ast
from obox.imap.commands import (
    append,
    auth,
    copy,
    expunge,
    fetch,
    idle,
    mailboxes,
    select,
    status,
    store,
)
from obox.imap.commands import list as listing
from obox.imap.later import Later
from obox.imap.machine import Handler, Table
from obox.imap.session import State

_ANY: Final[dict[type[ast.Command], Handler]] = {
    ast.Capability: auth.capability,
    ast.Noop: auth.noop,
    ast.Logout: auth.logout,
    ast.Id: auth.identify,
}
_NOT_AUTHENTICATED: Final[dict[type[ast.Command], Handler]] = {
    **_ANY,
    ast.StartTls: auth.starttls,
    ast.Login: auth.login,
    ast.Authenticate: auth.authenticate,
}
_AUTHENTICATED: Final[dict[type[ast.Command], Handler]] = {
    **_ANY,
    ast.Unauthenticate: Later("commands.unauthenticate.unauthenticate"),
    ast.Compress: Later("commands.compress.compress"),
    ast.Enable: auth.enable,
    ast.Select: select.select,
    ast.Create: mailboxes.create,
    ast.Delete: mailboxes.delete,
    ast.Rename: mailboxes.rename,
    ast.Subscribe: mailboxes.subscribe,
    ast.Unsubscribe: mailboxes.unsubscribe,
    ast.List: listing.list_,
    ast.Lsub: listing.lsub,
    ast.Xlist: Later("commands.xlist.xlist"),
    ast.GetMetadata: Later("commands.metadata.getmetadata"),
    ast.SetMetadata: Later("commands.metadata.setmetadata"),
    ast.GetAcl: Later("commands.acl.getacl"),
    ast.MyRights: Later("commands.acl.myrights"),
    ast.ListRights: Later("commands.acl.listrights"),
    ast.SetAcl: Later("commands.acl.setacl"),
    ast.DeleteAcl: Later("commands.acl.deleteacl"),
    ast.Notify: Later("notify.notify"),
    ast.MultiSearch: Later("commands.multisearch.esearch"),
    ast.Namespace: listing.namespace,
    ast.Status: status.status,
    ast.GetQuota: Later("commands.quota.getquota"),
    ast.GetQuotaRoot: Later("commands.quota.getquotaroot"),
    ast.SetQuota: Later("commands.quota.setquota"),
    ast.Append: append.append,
    ast.Idle: idle.idle,
}
_SELECTED: Final[dict[type[ast.Command], Handler]] = {
    **_AUTHENTICATED,
    ast.Check: auth.noop,
    ast.Close: expunge.close,
    ast.Unselect: expunge.unselect,
    ast.Expunge: expunge.expunge,
    ast.Search: Later("commands.search.search"),
    ast.Sort: Later("commands.sort.sort"),
    ast.Thread: Later("commands.thread.thread"),
    ast.UidBatches: Later("commands.uidbatches.uidbatches"),
    ast.CancelUpdate: Later("contexts.cancelupdate"),
    ast.Fetch: fetch.fetch,
    ast.Store: store.store,
    ast.Copy: copy.copy,
    ast.Move: copy.move,
    ast.Replace: Later("commands.replace.replace"),
}

TABLE: Final[dict[State, dict[type[ast.Command], Handler]]] = {
    State.NOT_AUTHENTICATED: _NOT_AUTHENTICATED,
    State.AUTHENTICATED: _AUTHENTICATED,
    State.SELECTED: _SELECTED,
    State.LOGOUT: {},
}

BEFORE_LOGIN: Final = frozenset(command.NAME for command in _NOT_AUTHENTICATED)
"""Commands whose arguments the parser reads before login."""

EXPUNGE_FORBIDDEN: Final[frozenset[type[ast.Command]]] = frozenset(
    {ast.Fetch, ast.Store, ast.Search, ast.Sort, ast.Thread}
)
"""No EXPUNGE is sent while these run, unless in their UID form. RFC 9051 §7.5.1."""

CANCELLABLE: Final[frozenset[type[ast.Command]]] = frozenset(
    {ast.Fetch, ast.Search, ast.MultiSearch, ast.Sort, ast.Thread, ast.Login, ast.Authenticate}
)
"""Commands that are cancelled when the client is gone. Any other command is
completed."""

COMMANDS: Final = Table(TABLE, EXPUNGE_FORBIDDEN, CANCELLABLE, auth.respond)
"""The table that the machine gets."""
