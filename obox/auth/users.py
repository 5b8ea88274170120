"""A user as the passwd-file describes it: the entry, and the parser of one line.

    user:{SCHEME}secret:uid:gid:gecos:home:shell:extra_fields

This is Dovecot's passwd-file; uid to shell are ignored. Extra fields are separated by
spaces, with or without Dovecot's `userdb_` prefix:
`quota_rule=*:storage=1G:messages=100000`, `nologin`, `disabled`, `reason=…`,
`nopassword`, `storage_id=…`. Other fields are kept in `extra` and have no meaning here.

Invariant: a line that names a user and has a password field gives an entry. A bad quota
or an unknown password scheme is a problem to report, not a reason to lose the user,
whose mails would bounce. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from obox.accounts import UNLIMITED, Account, Quota, storage_id
from obox.auth.names import normalise
from obox.auth.schemes import scheme_problem
from obox.errors import Invalid
from obox.types import StorageId

_UNITS = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"(\d{1,18})([bkmgt]?)i?b?", re.IGNORECASE)
_QUOTA_RULE = re.compile(r"quota_rule\d*")
_NO_EXTRA: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class UserEntry:
    """A line. `user` is normalised; `password`, a `{SCHEME}secret`, is in no repr."""

    user: str
    password: str = field(repr=False)
    storage_id: str | None = None
    """The name in the bucket, before escaping, if it is not the user's; None: the
    user's name.
    """
    nologin: bool = False
    """Logins are refused; mail is delivered."""
    disabled: bool = False
    """Logins and mail are refused."""
    reason: str = ""
    """The text for a client that is refused because of either."""
    nopassword: bool = False
    """Any password fits. This holds only if the password field is empty, as in Dovecot.
    """
    quota: Quota = UNLIMITED
    extra: Mapping[str, str] = field(default_factory=lambda: _NO_EXTRA)
    """Fields without a meaning here, and quota rules of single mailboxes; a flag has
    the value "".
    """

    @property
    def sid(self) -> StorageId:
        """Return where the user's mail lies in the bucket."""
        return storage_id(self.storage_id or self.user)

    @property
    def account(self) -> Account:
        """Return the user without the password and what a login asks."""
        return Account(self.user, self.sid, self.quota, disabled=self.disabled)


def parse_line(line: str, default_domain: str = "") -> tuple[UserEntry, tuple[str, ...]] | None:
    """Return the entry of a line and what is wrong with its details; None for a comment
    or an empty line.

    Raises: Invalid if the line describes no user.
    """
    line = line.rstrip("\r\n")
    if not line.strip() or line.startswith("#"):
        return None
    fields = line.split(":", 7)
    if len(fields) < 2:
        raise Invalid("no ':' and no password field")
    user = normalise(fields[0], default_domain)
    password = fields[1]
    if len(fields) < 8:
        problem = scheme_problem(password)
        return UserEntry(user, password), (problem,) if problem else ()
    return _with_extra(user, password, fields[7])


def _with_extra(user: str, password: str, text: str) -> tuple[UserEntry, tuple[str, ...]]:
    problems = []
    if problem := scheme_problem(password):
        problems.append(problem)
    storage_bytes: int | None = None
    messages: int | None = None
    known: dict[str, str] = {}
    extra: dict[str, str] = {}
    for item in text.split():
        raw, _, value = item.partition("=")
        name = raw.removeprefix("userdb_")
        if _QUOTA_RULE.fullmatch(name):
            if not value.startswith("*:"):
                extra[name] = value
                continue
            try:
                rule = parse_quota_rule(value)
            except Invalid as error:
                problems.append(str(error))
                continue
            storage_bytes = storage_bytes if rule.storage_bytes is None else rule.storage_bytes
            messages = messages if rule.messages is None else rule.messages
        elif name in {"nologin", "disabled", "nopassword", "reason", "storage_id"}:
            known[name] = value
        else:
            extra[raw] = value
    if "nopassword" in known and password:
        problems.append("nopassword next to a password is ignored")
    named: str | None = None
    if known.get("storage_id"):
        # a wrong value would open another user's mail: the line is bad
        named = normalise(known["storage_id"])
    entry = UserEntry(
        user=user,
        password=password,
        storage_id=named,
        nologin="nologin" in known,
        disabled="disabled" in known,
        reason=known.get("reason", ""),
        nopassword="nopassword" in known and not password,
        quota=Quota(storage_bytes or None, messages or None),
        extra=MappingProxyType(extra) if extra else _NO_EXTRA,
    )
    return entry, tuple(problems)


def parse_quota_rule(rule: str) -> Quota:
    """Read `*:storage=1G:messages=1000` as in Dovecot. Storage without a unit counts
    kilobytes, `bytes=` bytes.

    0 means no limit. The zero stays a zero here, so that a later rule can undo an
    earlier rule. Raises: Invalid.
    """
    mailbox, _, limits = rule.partition(":")
    if mailbox != "*":
        raise Invalid(f"quota rule for mailbox {mailbox!r} is not supported")
    storage_bytes: int | None = None
    messages: int | None = None
    for limit in limits.split(":"):
        name, _, value = limit.partition("=")
        match = _SIZE.fullmatch(value)
        if name == "storage" and match:
            storage_bytes = int(match[1]) * _UNITS[match[2].lower() or "k"]
        elif name == "bytes" and match:
            storage_bytes = int(match[1]) * _UNITS[match[2].lower() or "b"]
        elif name == "messages" and match and not match[2]:
            messages = int(match[1])
        else:
            raise Invalid(f"quota rule has a bad limit {limit!r}")
    return Quota(storage_bytes, messages)
