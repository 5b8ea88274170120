"""The meaning of each verb's columns, and the messages of verbs that find nothing to
show.

The command line's help and the manual use both. Tests compare them with the table and
with the rows that verbs give.

Invariant: names of columns are API: they change only with the CHANGELOG.
"""

from __future__ import annotations

from typing import Final

_PRIORITY: Final = "0 lists of mailboxes, 1 full text, 2 INBOX and Junk, 3 other mailboxes"
_BY_PRIORITY: Final = f"bytes of the copies with priority N: {_PRIORITY}"
_USER: Final = "the user"
_MAILBOX: Final = "the mailbox's name"
_FOUND: Final = "the mailbox where mails match"
_CHANGES: Final = (
    "the most important change among what was uploaded: none, unimportant (it is in mails or the journal as well), "
    "important (flags, expunges, moves)"
)
_ENTRY: Final = {
    "user": "the name to log in with",
    "login": "whether the user may log in",
    "delivery": "whether mail for the user is accepted",
    "quota_bytes": "the most octets of mail that the user may store; empty for no limit",
    "quota_messages": "the most mails that the user may store; empty for no limit",
}
_FLUSHED: Final = {"bundles": "mailboxes that were uploaded, the list of mailboxes among them", "changes": _CHANGES}
_DROPPED: Final = {
    "copies": "local copies of mailboxes that were dropped",
    "bytes": "their size",
    "kept": "local copies that stay",
    "why": "why they stay",
}
_OF_BACKEND: Final = "the backend that the row is of, where a cluster has several"
_DIRECTORY: Final = {
    "directory": "where the directory is",
    "id": "the random number that the directory got when it was made",
    "version": "the version of its rows: major.minor",
    "groups": "how many groups it has",
    "made": "when it was made, unix time",
}
_BACKEND: Final = {
    "backend": "the name of the backend",
    "site": "the site that it is in; empty before its first start",
    "address": "the host where other members reach it; empty before its first start",
    "status": "what the operator wants: online, standby (it gets no groups) or offline (others take its groups)",
    "load_factor": "its share of the load, 0 to 100; with 0 it gets no groups",
}
_EVACUATE: Final = "whether it gives its groups up"
_SITE: Final = {"site": "the name of the site", "status": "online, standby or offline", "comment": "for operators"}
_OWNER: Final = "the backend that has the group; empty: nobody yet"

_LETTER: Final = {
    "id": "how commands name the dead letter",
    "group": "the group that could not handle the event",
    "user": "the storage id of the user",
    "kind": "what has happened; empty if the dead letter does not decode",
    "mailbox": "the GUID of the mailbox; empty if the event is about none",
    "uids": "UIDs of the mails",
    "failures": "how often the listener failed",
    "error": "the last failure",
    "at": "when it became a dead letter, unix time",
}

COLUMNS: Final[dict[str, dict[str, str]]] = {
    "eventsGroups": {
        "group": "the name of the group",
        "here": "whether this backend runs it",
        "health": "ok, or degraded while there are dead letters",
        "dead_letters": "dead letters in the bucket",
        "waiting": "events that wait in the memory of this backend",
        "handled": "events that it has handled since the start of this backend",
        "failures": "how often its listener has failed since then",
        "lag_s": "for how many seconds the oldest event of this backend has waited",
    },
    "eventsLag": {
        "group": "the name of the group",
        "backend": "the backend that wrote the journal",
        "boot": "the name of the boot, as in metacache boots",
        "state": "lives, or over: the owners of its users handle the events",
        "behind": "journal objects with events that were not handled",
        "users": "users in them",
        "since": "the time of the oldest, unix time",
    },
    "eventsDeadLettersList": _LETTER,
    "eventsDeadLettersShow": {**_LETTER, "event": "the event, as JSON"},
    "eventsDeadLettersRedeliver": {"id": "the dead letter", "result": "handled, or why the event could not be handled"},
    "eventsDeadLettersPurge": {"group": "the group", "dead_letters": "dead letters that are deleted"},
    "userList": _ENTRY,
    "userAdd": _ENTRY,
    "userPassword": _ENTRY,
    "userDisable": _ENTRY,
    "userEnable": _ENTRY,
    "userRemove": _ENTRY,
    "authTest": {
        "username": "the user that the login is for",
        "storage_id": "the name under which the user's mail is stored in the bucket",
        "quota_bytes": _ENTRY["quota_bytes"],
    },
    "who": {
        "backend": _OF_BACKEND,
        "username": "the user who is logged in; empty for a connection that has not logged in",
        "connections": "how many connections the user has",
        "service": "the protocol",
        "ips": "the addresses of the clients",
        "id": "the number of the session, as in the log",
        "ip": "the address of the client",
        "tls": "whether the client uses TLS",
        "state": "the state of the session: not authenticated, authenticated, selected, logout",
        "mailbox": "the mailbox that is selected",
        "idle": "whether the client waits in IDLE",
        "since": "when the connection began, unix time",
    },
    "kick": {
        "backend": _OF_BACKEND,
        "username": "the user who was disconnected",
        "connections": "how many connections",
    },
    "reload": {"setting": "a setting whose value has changed", "used": "now, or after a restart"},
    "stop": {
        "step": "what was done, and whether it was cut short",
        "count": "users that were flushed, or connections that were ended",
        "seconds": "how long it took",
    },
    "logErrors": {
        "timestamp": "when it was logged",
        "type": "warning, error or critical",
        "text": "what was logged",
    },
    "mailboxList": {"mailbox": _MAILBOX},
    "mailboxStatus": {
        "mailbox": _MAILBOX,
        "messages": "how many mails it has",
        "recent": "how many of them are \\Recent",
        "uidnext": "the UID that the next mail gets",
        "uidvalidity": "the UIDVALIDITY",
        "unseen": "how many mails are not \\Seen",
        "highestmodseq": "the highest MODSEQ",
        "vsize": "the size of all mails, in octets",
        "guid": "the mailbox's name in the bucket",
        "deleted": "how many mails are \\Deleted",
    },
    "mailboxDelete": {"mailbox": "a mailbox that would be deleted", "messages": "how many mails it has"},
    "quotaGet": {
        "quota": "the name of the quota",
        "type": "STORAGE (octets of mail) or MESSAGE (mails)",
        "value": "what is stored; STORAGE in kibibytes",
        "limit": "what may be stored; empty for no limit",
        "percent": "value of limit; empty without a limit",
    },
    "quotaRecalc": {
        "before_bytes": "octets of mail by the totals as they were",
        "bytes": "octets of mail by the mailboxes",
        "before_messages": "mails by the totals as they were",
        "messages": "mails by the mailboxes",
    },
    "fetch": {
        "user": _USER,
        "mailbox": _FOUND,
        "mailbox-guid": "the mailbox's name in the bucket",
        "seq": "the sequence number",
        "uid": "the UID",
        "guid": "the mail's own number, the same for all its copies",
        "flags": "flags and keywords",
        "modseq": "the MODSEQ",
        "hdr": "the header",
        "hdr.NAME": "a field of the header, decoded; a line for each, if there are several",
        "body": "what follows the header",
        "text": "the whole mail",
        "text.utf8": "the texts of all parts, decoded",
        "size.physical": "the size in octets",
        "size.virtual": "the same: mails are stored with CRLF",
        "date.received": "the internal date, UTC",
        "date.sent": "the Date field, with its zone",
        "date.saved": "when it came into this mailbox, UTC",
        "imap.envelope": "ENVELOPE, as IMAP writes it",
        "imap.body": "BODY, as IMAP writes it",
        "imap.bodystructure": "BODYSTRUCTURE, as IMAP writes it",
        "storageid": "the mailbox and UID under which the mail's object is stored in the bucket",
    },
    "search": {"mailbox-guid": "the mailbox's name in the bucket", "uid": "the UID of a mail that matches"},
    "flagsAdd": {"mailbox": _FOUND, "changed": "how many mails got other flags than before"},
    "flagsRemove": {"mailbox": _FOUND, "changed": "how many mails got other flags than before"},
    "flagsReplace": {"mailbox": _FOUND, "changed": "how many mails got other flags than before"},
    "expunge": {"mailbox": _FOUND, "expunged": "how many mails were expunged"},
    "copy": {"mailbox": _FOUND, "copied": "how many mails were copied from it"},
    "move": {"mailbox": _FOUND, "moved": "how many mails were moved from it"},
    "forceResync": {
        "mailbox": _MAILBOX,
        "mails": "how many mails it has now",
        "new": "mails that no index knew, added now",
        "lost": "mails whose object is gone",
        "dropped": "of these, how many were expunged",
        "unknown": "objects below the next UID that no index has; oboxadm rebuild brings them back",
        "uidnext": "the UID that the next mail gets",
    },
    "rebuild": {
        "mailbox": "the mailbox's name; empty for the list of mailboxes",
        "mails": "how many mails it has now",
        "result": "what was done, and why",
        "unknown": "what cannot be known from the mails",
    },
    "metacacheFlush": _FLUSHED,
    "metacacheFlushall": {"username": _USER, **_FLUSHED},
    "metacacheList": {
        "backend": _OF_BACKEND,
        "username": "the user whose copies these are",
        "bytes-used(N)": _BY_PRIORITY,
        "last-access(N)": "when one of these was last used, unix time; empty where there are none",
        "mailboxes": "how many mailboxes have a local copy, the list of mailboxes among them",
        "changes": "what the bucket lacks: none, unimportant (it is in mails or the journal as well), important "
        "(flags, expunges, moves)",
        "cleanup-weight": "the cleaner drops the lowest first: last access in unix time, plus what "
        "metacache.priority_weights and size_weights add",
    },
    "metacacheStatus": {
        "backend": _OF_BACKEND,
        "users": "users with local copies",
        "mailboxes": "local copies of mailboxes, lists of mailboxes among them",
        "bytes": "their size: what counts against the limits",
        "max_space": "metacache.max_space: above it the cleaner drops copies",
        "limit": "max_space plus max_grace: above it no further copy is stored",
        "staged_bytes": "changes in memory that are not yet on the disk",
        "file_bytes": "size of the files; it does not shrink when copies are dropped",
        "bytes-used(N)": _BY_PRIORITY,
        "over": "whether bytes is above max_space",
        "full": "whether bytes is above limit",
        "failing": "whether the disk refuses writes",
    },
    "metacacheClean": _DROPPED,
    "metacacheRemove": {"username": _USER, **_DROPPED},
    "metacachePull": {
        "mailboxes": "local copies that came from the source",
        "kept": "mailboxes whose copy here is as new, or is open",
        "bytes": "what came over the network",
        "cleaned": "copies that the source dropped afterwards",
        "result": "pulled, nothing newer there, or nothing there",
    },
    "metacacheRefresh": {"asked": "open mailboxes that were compared with the bucket now"},
    "metacacheRescan": {
        "users": "users with local copies",
        "before_bytes": "how many bytes were counted before",
        "bytes": "bytes by the recount",
        "right": "whether the counts were right",
        "wrong": "what was wrong, and is mended now",
    },
    "metacacheBoots": {
        "boot": "the name of the start: its time in milliseconds, in hexadecimal, and a random number",
        "began": "when it began, unix time",
        "ended": "when it was stopped, unix time; empty for the running boot and for a boot that was killed",
        "before": "how the boot before it ended: clean, unclean, or unknown",
        "copies": "what was done with the local copies: kept, asked again (each mailbox is compared once when it is "
        "opened), dropped, or none (there were none)",
        "users": "how many users the journal of a boot that ended uncleanly has changes of",
    },
    "metacacheUnpack": {
        "key": "the key in the bucket, or the file",
        "kind": "what kind of object it is",
        "version": "the major version of its envelope",
        "oid": "the object's own number",
        "bytes": "its size in the bucket",
        "meta": "the metadata in its envelope",
        "octets": "of a mail: its size",
        "fields": "of a cache segment: UIDs and the size of their fields",
        "content": "its content",
    },
    "fscacheStatus": {
        "hits": "reads that were answered from the cache, since the start",
        "misses": "reads that asked the bucket, since the start",
        "bytes": "size of what is there now",
        "files": "how many files that is",
        "evictions": "files that made room for others, since the start",
        "errors": "failed reads and writes of files, since the start",
        "skipped": "objects that were not stored: too large, or too many waiting",
        "oldest": "when the file that was not read for the longest time was last read, unix time, about",
        "pending": "bytes that wait to be written",
        "max_size": "fscache.max_size",
        "hit_percent": "hits of all reads; empty before the first",
    },
    "fscacheRescan": {
        "before": "how many bytes were counted before",
        "bytes": "bytes in the directory",
        "files": "files in the directory",
        "added": "files that were not counted before",
        "removed": "files that another program had removed",
        "changed": "files with another size than was counted before",
        "expired": "files that were removed for their age",
        "right": "whether the counts were right",
    },
    "oboxUserDelete": {
        "what": "what the row is about: mails, index, local copies, … and what the command cannot reach",
        "objects": "how many objects",
        "bytes": "their size",
        "result": "what was done, or what is left to do",
    },
    "oboxUserRename": {
        "user": "the new name",
        "storage_id": "the name under which the mail lies in the bucket, as before",
        "connections": "sessions that were ended",
        "result": "what was done",
    },
    "oboxUserWait": {"sessions": "sessions and deliveries that still have the user's mail open"},
    "storageCheck": {
        "check": "what was tried",
        "result": "ok, warning, wrong (obox needs it), or unknown",
        "detail": "what was seen",
        "ms": "how long it took, in milliseconds",
    },
    "storageUpgrade": {
        "objects": "how many objects the user has",
        "outdated": "how many of them are of an older format, or not sealed under the first key",
        "upgraded": "how many were rewritten",
        "damaged": "how many do not decode, or belong to somebody else; they are left as they are",
        "foreign": "how many keys do not belong to obox",
    },
    "storageFinishUpgrade": {
        "what": "a user, or a kind of object",
        "outdated": "how many objects of an older format there are",
        "result": "what to do about them, or that the upgrade is finished",
    },
    "clusterInit": _DIRECTORY,
    "clusterUpgrade": {
        "what": "a member, the directory, or the bucket of a backend without a cluster",
        "version": "of a member: its version of obox; of the directory: the version of its rows; of the bucket: the "
        "forms above the first version",
        "reads": "forms that it can read, with their versions; of the directory and the bucket: those of this obox",
        "result": "ready, or what to do; of the directory and the bucket: up to date, raised, or that it waits",
    },
    "clusterStatus": {
        **_DIRECTORY,
        "unassigned": "groups that no backend has yet",
        "moving": "moves that are pending",
        "backends": "how many backends there are",
        "online": "how many of them are online",
        "standby": "how many of them are standby",
        "offline": "how many of them are offline",
        "evacuating": "how many of them are online and give their groups up",
        "silent": "how many of them have no beat that is younger than cluster.dead_after",
        "proxies": "how many proxies there are",
        "answer_ms": "how long the directory took to answer, in milliseconds",
    },
    "clusterCheck": {
        "result": "wrong (somebody has to do something), note, or ok (of a login)",
        "check": "what was found, in a word",
        "where": "the row: its kind and key",
        "detail": "what was seen",
    },
    "clusterDump": {
        "kind": "the kind of the row",
        "key": "its key",
        "timestamp": "when it was written, unix time in microseconds",
        "record": "what it says",
        "value": "of a row that cannot be read: its bytes in base64",
    },
    "clusterLoad": {"rows": "how many rows the dump has"},
    "clusterReboots": {
        "backend": "the name of the backend",
        "boot": "the name of the boot, as in metacache boots",
        "began": "when it began, unix time",
        "ended": "when it was stopped or fenced, unix time; empty before",
        "state": "runs, silent (its beat is old), unclean (the bucket does not have everything in bundles yet), or "
        "clean",
    },
    "clusterMerges": {
        "group": "the group, or u: and the storage id of a user who is or was pinned",
        "backend": "the backend that wrote to its users while another had it",
        "at": "when it uploaded what it had, unix time",
        "users": "of how many users it had changes that were not in the bucket yet; 0: of none",
    },
    "clusterBalance": {
        "group": "the group that moves",
        "backend": "the backend that has it",
        "to": "the backend that gets it",
        "why": "the numbers of users and groups, the load of the machines, and the shares that lead to it",
    },
    "clusterBackendList": _BACKEND,
    "clusterBackendAdd": _BACKEND,
    "clusterBackendUpdate": {**_BACKEND, "evacuate": _EVACUATE},
    "clusterBackendStatus": {
        **{name: text for name, text in _BACKEND.items() if name != "address"},
        "groups": "how many groups it has",
        "users": "how many users it has who are or were pinned, apart from its groups",
        "evacuate": _EVACUATE,
        "alive": "whether its beat is younger than cluster.dead_after",
        "beat": "age of its beat in seconds; empty without a beat",
        "started": "when the process began, unix time",
        "version": "its version of obox",
        "cpu": "how busy the processors of its machine are, in percent",
        "memory": "how much of the memory of its machine is in use, in percent",
    },
    "clusterBackendRemove": {"backend": "the name of the backend", "result": "what was done"},
    "clusterBackendEvacuate": {
        "backend": "the name of the backend",
        "groups": "how many groups and single users it has left",
        "status": "its status",
        "result": "asked, evacuated, cancelled, or goes on",
    },
    "clusterSiteAdd": _SITE,
    "clusterSiteUpdate": {**_SITE, "backends": "how many backends it concerns"},
    "clusterSiteRemove": {"site": "the name of the site", "result": "what was done"},
    "clusterSiteEvacuate": {
        "site": "the name of the site",
        "groups": "how many groups and single users its backends have left",
        "status": "the status of its backends",
        "result": "asked, evacuated, cancelled, or goes on",
    },
    "clusterSiteList": _SITE,
    "clusterSiteStatus": {
        **_SITE,
        "backends": "how many backends it has",
        "alive": "how many of them have a beat that is younger than cluster.dead_after",
        "groups": "how many groups its backends have",
    },
    "clusterGroupList": {
        "group": "the number of the group",
        "backend": _OWNER,
        "alternative": "the backend that takes it if its owner is gone",
        "to": "the backend that it is to move to; empty: none",
        "number": "the number of its assignment",
    },
    "clusterGroupMove": {
        "group": "the number of the group",
        "backend": "the backend that has it",
        "to": "the backend that it moves to",
        "result": "asked, already there, or cancelled",
    },
    "clusterUserStatus": {
        "storage_id": "the name under which the user's mail is stored in the bucket",
        "group": "the group that the user is in",
        "pinned": "whether the user stays where cluster user move put the user, whatever the group does",
        "backend": "the backend that has the user; empty: nobody yet",
        "site": "the site of the backend",
        "address": "the host of the backend",
        "to": "the backend that the group is to move to; empty: none",
    },
    "clusterUserMove": {
        "group": "the group that the user is in",
        "backend": "the backend that has the user",
        "to": "the backend that the user moves to",
        "result": "asked, pinned, already there, cancelled, unpinned, or not pinned",
    },
    "clusterUserKick": {
        "backend": "the backend that has the user",
        "connections": "how many sessions it ended",
    },
}
"""The meaning of each column of each verb, by its API name. (N) means a column for each
priority. If a command is about several users, each row also begins with `username`."""

_NO_MAIL: Final = "no mail matches"
_NO_MAILBOX: Final = "no such mailbox"

NONE: Final[dict[str, str]] = {
    "userList": "the passwd-file has no users",
    "who": "nobody is logged in",
    "reload": "no setting has changed",
    "logErrors": "no warnings and no errors",
    "mailboxList": _NO_MAILBOX,
    "mailboxStatus": _NO_MAILBOX,
    "fetch": _NO_MAIL,
    "search": _NO_MAIL,
    "flagsAdd": _NO_MAIL,
    "flagsRemove": _NO_MAIL,
    "flagsReplace": _NO_MAIL,
    "expunge": _NO_MAIL,
    "copy": _NO_MAIL,
    "move": _NO_MAIL,
    "forceResync": _NO_MAILBOX,
    "rebuild": "every index decodes, none was rebuilt",
    "metacacheFlushall": "no user has changes to upload",
    "metacacheList": "no user has local copies",
    "metacacheRemove": "no user has local copies",
    "metacacheBoots": "no backend was started with this state_dir",
    "oboxUserWait": "nobody has the mail open",
    "clusterCheck": "the directory is in order",
    "clusterDump": "the directory has no rows",
    "clusterReboots": "no boot is known",
    "clusterMerges": "no two backends have written to the same users",
    "clusterBalance": "each backend has its share of the groups",
    "clusterBackendList": "no backend matches",
    "clusterBackendStatus": "no backend matches",
    "clusterSiteList": "no site matches",
    "clusterSiteStatus": "no site matches",
    "clusterGroupList": "no group matches",
    "eventsGroups": "no listener is configured",
    "eventsLag": "no group is behind",
    "eventsDeadLettersList": "there are no dead letters",
    "eventsDeadLettersRedeliver": "there are no dead letters",
    "eventsDeadLettersPurge": "there are no dead letters",
}
"""The message on stderr if a verb that usually has rows has none, by API name."""

SILENT: Final = frozenset(
    ("userRemove", "mailboxCreate", "mailboxDelete", "mailboxRename", "mailboxSubscribe", "mailboxUnsubscribe")
)
"""Verbs that have no rows if they succeed. They need no message."""


def names(verb: str, column: str) -> str:
    """Return the name under which `COLUMNS` explains a column, or "" if it does not."""
    known = COLUMNS.get(verb, {})
    head, opened, rest = column.partition("(")
    if opened and rest.rstrip(")").isdigit():
        column = f"{head}(N)"
    if verb == "fetch" and column.startswith("hdr."):
        column = "hdr.NAME"
    return column if column in known or column == "username" else ""
