"""The passwd-file: users are looked up by name; the file is reloaded when it changes,
and edited without ever being half written.

Invariant: once the file has been read, there is always a table. If the file cannot be
read, or an editor has just emptied it, the old table stays in force and a line is
logged. Before the first success every lookup is Unavailable, so that no mail bounces
because a mount came late. A bad line affects only that line. Nobody opens mail that
another line claims by `storage_id=`, unless their own line has `storage_id=` too: such
a user is Unavailable until the file is corrected.

Diagnostics: a warning per load with the numbers of the bad lines; a warning per
unreadable state, not per lookup.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from obox.accounts import Account
from obox.auth.names import normalise
from obox.auth.schemes import split_secret
from obox.auth.users import UserEntry, parse_line
from obox.errors import Exists, Invalid, NotFound, Temporary, Unavailable

log = structlog.get_logger("obox.auth")

CHECK_INTERVAL_S = 1.0
"""A changed file is noticed after at most this long: a stat each second, whatever the
load.
"""

PROBLEMS_LOGGED_MAX = 20

_Stamp = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a line, counted from 1."""

    line: int
    text: str
    skipped: bool = True
    """False: the user exists, without the wrong detail."""


@dataclass(frozen=True, slots=True)
class _Table:
    users: dict[str, UserEntry]
    claimed: dict[str, str]
    problems: tuple[Problem, ...]
    typical_secret: str


def parse(data: bytes, default_domain: str = "") -> tuple[dict[str, UserEntry], tuple[Problem, ...]]:
    """Return all users of a file by name, and what is wrong with its lines.

    The first of two lines for the same user counts.
    """
    users: dict[str, UserEntry] = {}
    numbers: dict[str, int] = {}
    problems: list[Problem] = []
    for number, raw in enumerate(data.split(b"\n"), 1):
        try:
            found = parse_line(raw.decode("utf-8"), default_domain)
        except UnicodeDecodeError:
            problems.append(Problem(number, "not UTF-8"))
            continue
        except Invalid as error:
            problems.append(Problem(number, str(error)))
            continue
        if found is None:
            continue
        entry, details = found
        if entry.user in users:
            problems.append(Problem(number, f"user {entry.user} exists more than once"))
            continue
        users[entry.user] = entry
        numbers[entry.user] = number
        problems.extend(Problem(number, text, skipped=False) for text in details)
    problems += [Problem(numbers[user], _taken(user, owner)) for user, owner in claimed(users).items()]
    return users, tuple(problems)


def claimed(users: Mapping[str, UserEntry]) -> dict[str, str]:
    """Return users whose mail would be another user's, and whose.

    This is so if a line has `storage_id=` with their name, as after a rename, and their
    own line has no `storage_id=`. Users who share mail on purpose have it in both
    lines.
    """
    out = {}
    for owner in users.values():
        entry = users.get(owner.storage_id or "")
        if entry is not None and entry.storage_id is None:
            out[entry.user] = owner.user
    return out


def _taken(user: str, owner: str) -> str:
    return f"the mail under the name {user} is {owner}'s, by storage_id=; give this user a storage_id= of its own"


class PasswdFile:
    """The users of a file. `clock` counts seconds and never goes back."""

    def __init__(
        self, path: str | Path, default_domain: str = "", *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.path = Path(path)
        self.default_domain = default_domain
        self._clock = clock
        self._checked_at = 0.0
        self._stamp: _Stamp | None = None
        self._table: _Table | None = None
        self._complaint = ""
        self._loading: asyncio.Lock | None = None

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Return what was wrong with the lines of the present table."""
        return self._table.problems if self._table else ()

    @property
    def typical_secret(self) -> str:
        """Return a secret of the commonest scheme.

        Hashing against it takes as long as against a user's own secret.
        """
        return self._table.typical_secret if self._table else ""

    def normalise(self, user: str) -> str:
        """Do `obox.auth.normalise` with this file's default domain."""
        return normalise(user, self.default_domain)

    def lookup(self, user: str) -> UserEntry | None:
        """Return the entry of a user, in any spelling; None if there is no such user.
        Reads a changed file at once.

        Raises: Unavailable while the file has never been readable, and for a user whose
        mail another line claims.
        """
        if (stamp := self._changed()) is not None:
            self._load(stamp)
        return self._find(user)

    async def lookup_async(self, user: str) -> UserEntry | None:
        """Do `lookup` for the event loop: a changed file is read in a thread, once for
        all who wait."""
        await self.refresh()
        return self._find(user)

    async def account(self, user: str) -> Account | None:
        """Return the account of a user, in any spelling; None if there is no such user.

        Raises as `lookup`.
        """
        entry = await self.lookup_async(user)
        return entry.account if entry is not None else None

    async def refresh(self) -> None:
        """Check whether the file has changed, and read it in a thread.

        Once the file was read, it is checked at most once a second.
        """
        if (stamp := self._changed()) is None:
            return
        self._loading = self._loading or asyncio.Lock()
        async with self._loading:
            if stamp != self._stamp:
                await asyncio.to_thread(self._load, stamp)

    def expect_change(self) -> None:
        """Note that we changed the file: the next lookup reads it, however short ago
        the last check was.
        """
        self._checked_at = -CHECK_INTERVAL_S

    def users(self) -> list[UserEntry]:
        """Return all entries whose mail is theirs, by name.

        Raises: Unavailable while the file has never been readable.
        """
        if (stamp := self._changed()) is not None:
            self._load(stamp)
        table = self._required()
        return [entry for name, entry in sorted(table.users.items()) if name not in table.claimed]

    def moved(self, path: str | Path, default_domain: str) -> PasswdFile:
        """Return a replacement of this object, which stays as it is, with its file
        read. Blocks.

        Raises: Unavailable if the file cannot be read, or is empty while this file has
        users.
        """
        new = PasswdFile(path, default_domain, clock=self._clock)
        new._table = self._table
        new.expect_change()
        if (stamp := new._changed()) is not None:
            new._load(stamp)
        if new._stamp is None:
            raise Unavailable(new._complaint)
        return new

    def _find(self, user: str) -> UserEntry | None:
        table = self._required()
        try:
            name = self.normalise(user)
        except Invalid:
            return None
        if (owner := table.claimed.get(name)) is not None:
            raise Unavailable(_taken(name, owner))
        return table.users.get(name)

    def _required(self) -> _Table:
        if self._table is None:
            raise Unavailable("user database is not available")
        return self._table

    def _changed(self) -> _Stamp | None:
        now = self._clock()
        if self._table is not None and now - self._checked_at < CHECK_INTERVAL_S:
            return None
        self._checked_at = now
        try:
            stamp = _stamp(os.stat(self.path))
        except OSError as error:
            self._complain(f"cannot be read: {error.strerror}")
            return None
        return None if stamp == self._stamp else stamp

    def _load(self, stamp: _Stamp) -> None:
        try:
            with open(self.path, "rb") as file:
                stamp = _stamp(os.fstat(file.fileno()))
                data = file.read()
        except OSError as error:
            self._complain(f"cannot be read: {error.strerror}")
            return
        if not data and self._table is not None and self._table.users:
            self._complain("is empty: half written, or remove its users one by one")
            return
        users, problems = parse(data, self.default_domain)
        self._table = _Table(users, claimed(users), problems, _typical_secret(users))
        self._stamp = stamp
        self._complaint = ""
        log.info("passwd-file loaded", path=str(self.path), users=len(users), bad_lines=len(problems))
        for problem in problems[:PROBLEMS_LOGGED_MAX]:
            log.warning(
                "passwd-file has a bad line",
                path=str(self.path),
                line=problem.line,
                error=problem.text,
                skipped=problem.skipped,
            )

    def _complain(self, text: str) -> None:
        if text != self._complaint:
            self._complaint = text
            log.error(
                "passwd-file cannot be read",
                path=str(self.path),
                error=text,
                old_users_kept=self._table is not None,
                next_step="`oboxadm user add` makes the file; it is used as soon as it can be read",
            )


def _stamp(stat: os.stat_result) -> _Stamp:
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _typical_secret(users: dict[str, UserEntry]) -> str:
    schemes: Counter[str] = Counter()
    sample: dict[str, str] = {}
    for entry in users.values():
        with contextlib.suppress(ValueError):
            scheme, _, rest = split_secret(entry.password)
            if rest:
                schemes[scheme] += 1
                sample.setdefault(scheme, entry.password)
    return sample[schemes.most_common(1)[0][0]] if schemes else ""


def list_users(path: str | Path, default_domain: str = "") -> list[UserEntry]:
    """Return all users of a file, for the command line. Raises: NotFound, Temporary."""
    users, _ = parse(_read(Path(path)), default_domain)
    return [entry for _, entry in sorted(users.items())]


def add_user(path: str | Path, user: str, secret: str, *, default_domain: str = "", extra: str = "") -> UserEntry:
    """Append `user:secret` to the file; on disk on return.

    The file is created with mode 0600 if it does not exist. secret: from
    `hash_password`. extra: the extra fields, if any. Other lines, the file's mode and
    its owner stay as they are; a symbolic link stays a link. Two processes that add at
    once wait for each other.

    Raises: Exists for a user who exists in any spelling, and if two users would share
    mail unintentionally; Invalid; Temporary if the file cannot be written.
    """
    name = normalise(user)
    if ":" in name or name.startswith("#"):
        raise Invalid("user name has a ':' or begins with '#', which a passwd-file cannot hold")
    if any(char in secret for char in ":\r\n") or any(char in extra for char in "\r\n"):
        raise Invalid("password field has a ':' or a line end")
    line = f"{name}:{secret}:::::" + (f":{extra}" if extra else "")
    parsed = parse_line(line, default_domain)
    assert parsed is not None
    entry, problems = parsed
    if problems:
        raise Invalid(problems[0])
    target = Path(os.path.realpath(path))
    try:
        with _locked(target) as data:
            users, _ = parse(data, default_domain)
            if entry.user in users:
                raise Exists(f"user {entry.user} exists already")
            _refuse_shared(users, entry)
            ending = b"" if not data or data.endswith(b"\n") else b"\n"
            _replace(target, data + ending + line.encode("utf-8") + b"\n")
    except OSError as error:
        raise Temporary(f"passwd-file cannot be written: {error.strerror}") from error
    return entry


def _refuse_shared(users: dict[str, UserEntry], entry: UserEntry) -> None:
    """Raises Exists if this entry would make some user's mail that of another user,
    without `storage_id=`.
    """
    for user, owner in claimed({**users, entry.user: entry}).items():
        if entry.user == user:
            raise Exists(_taken(user, owner))
        if entry.user == owner:
            raise Exists(f"storage_id={user} is {user}'s mail; to share it that line must have storage_id={user} too")


def rename_user(path: str | Path, user: str, new: str, *, default_domain: str = "") -> UserEntry:
    """Give a user another name, and `storage_id=` with the name before: the mail stays
    where it is.

    Raises NotFound, Exists, Invalid (nothing is changed then), Temporary.
    """
    old, name = normalise(user, default_domain), normalise(new, default_domain)

    def change(fields: list[str]) -> list[str]:
        extra = fields[7].split()
        if not any(word.removeprefix("userdb_").startswith("storage_id=") for word in extra):
            extra.append(f"storage_id={old}")
        return [name, *fields[1:7], " ".join(extra)]

    entry = edit_user(path, user, change, default_domain=default_domain, renamed=name)
    assert entry is not None
    return entry


def edit_user(
    path: str | Path,
    user: str,
    change: Callable[[list[str]], list[str] | None],
    *,
    default_domain: str = "",
    renamed: str = "",
) -> UserEntry | None:
    """Change a user's line, completely or not at all.

    Returns the new entry, or None if the line was removed. change: gets the eight
    fields of the line (user, secret, uid, gid, gecos, home, shell, extra fields) and
    returns the new fields, or None to remove the line. renamed: the user's name after
    the change. Raises NotFound, Exists (there is a user of that name), Invalid (nothing
    is changed then), Temporary.
    """
    name = normalise(user, default_domain)
    target = Path(os.path.realpath(path))
    try:
        with _locked(target) as data:
            lines = data.split(b"\n")
            at = next((at for at, raw in enumerate(lines) if _names(raw, name, default_domain)), None)
            if at is None:
                raise NotFound(f"user {name} is not in the passwd-file")
            users, _ = parse(data, default_domain)
            if renamed and renamed in users:
                raise Exists(f"user {renamed} exists already")
            text = lines[at].decode("utf-8").rstrip("\r")
            fields = change((text.split(":", 7) + [""] * 7)[:8])
            if fields is None:
                del lines[at]
                _replace(target, b"\n".join(lines))
                return None
            line = ":".join(fields).removesuffix(":") if not fields[7] else ":".join(fields)
            parsed = parse_line(line, default_domain)
            good = parsed is not None and parsed[0].user == (renamed or name) and not parsed[1]
            if parsed is None or not good or any(char in line for char in "\r\n"):
                raise Invalid("the line cannot be written: " + "; ".join(parsed[1] if parsed else ()))
            if renamed and parsed[0].storage_id != (users[name].storage_id or name):
                raise Invalid(f"the name {name} cannot be kept as storage_id=")
            lines[at] = line.encode("utf-8")
            _replace(target, b"\n".join(lines))
            return parsed[0]
    except OSError as error:
        raise Temporary(f"passwd-file cannot be written: {error.strerror}") from error


def _names(raw: bytes, name: str, default_domain: str) -> bool:
    """Return whether this is the line of that user."""
    try:
        found = parse_line(raw.decode("utf-8"), default_domain)
    except (UnicodeDecodeError, Invalid):
        return False
    return found is not None and found[0].user == name


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound("passwd-file does not exist") from error
    except OSError as error:
        raise Temporary(f"passwd-file cannot be read: {error.strerror}") from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bytes]:
    """Yield the file's bytes, and keep other editors of ours from it meanwhile."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with open(fd, "rb") as file:
            fcntl.flock(fd, fcntl.LOCK_EX)
            try:
                current = os.stat(path)
            except FileNotFoundError:
                continue
            # else it was replaced while we waited: lock the new file
            if current.st_ino == os.fstat(fd).st_ino:
                yield file.read()
                return


def _replace(path: Path, data: bytes) -> None:
    stat = path.stat()
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            os.fchmod(fd, stat.st_mode & 0o7777)
            if (stat.st_uid, stat.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(fd, stat.st_uid, stat.st_gid)
            file.flush()
            os.fsync(fd)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
