"""Buckets that older versions of obox wrote, from the archives version-*.tar.gz: what a
killed backend left.

Each archive has the bucket, and what a client saw of it at the end. Sealed objects use
the key k1, which is 32 bytes "1". Buckets of version 1 have the first envelope. Those
of version 2 have the second envelope, and no batches.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

from machines import Bucket, Life, Machine, whole

from obox.objectstore import Codec, MemoryDriver

HERE = Path(__file__).parent
KEYS = {"k1": b"1" * 32, "k2": b"2" * 32}


class Old:
    """A bucket of an older version, in memory, and a machine that serves it."""

    def __init__(self, kind: str, tmp_path: Path, version: int = 1) -> None:
        self.kind = kind
        self.memory = MemoryDriver()
        with tarfile.open(HERE / f"version-{version}-{kind}.tar.gz") as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is None:
                    continue
                if member.name == "expected.json":
                    self.expected: dict[str, Any] = json.load(file)
                else:
                    self._add(member.name.removeprefix("bucket/"), file.read(), member.mtime)
        self.memory.keys.sort()
        bucket = Bucket("memory://", self.codec, driver=self.memory)
        self.machine = Machine(bucket, tmp_path / "disk", delete_delay_s=1e10)
        self.machine.batches = False

    def _add(self, key: str, data: bytes, modified: float) -> None:
        self.memory.objects[key] = (data, modified)
        self.memory.keys.append(key)

    def codec(self) -> Codec:
        return Codec(KEYS, "k1") if self.kind == "sealed" else Codec({}, None)

    def majors(self, prefix: str = "") -> set[int]:
        """Return the major versions of the users' objects."""
        return {data[4] for key, data in self.objects(prefix).items() if not key.startswith("_") and data}

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        return {key: data for key, (data, _) in self.memory.objects.items() if key.startswith(prefix)}

    async def check(self, life: Life, more: dict[str, bytes] | None = None) -> None:
        """Assert that everything is as it was. more: the mails that came to Anna's
        INBOX since, by UID."""
        for name, boxes in self.expected.items():
            user = await life.user(name)
            found = await whole(user)
            for box, was in boxes.items():
                _, _, validity, _, _, _, _, rows = found[box]
                now = {
                    str(uid): {"flags": flags, "size": size, "sha256": hashlib.sha256(raw).hexdigest()}
                    for uid, (flags, _, _, size, raw) in rows.items()
                    if not (more and (name, box) == ("anna", "INBOX") and str(uid) in more)
                }
                assert (now, validity) == (was["mails"], was["uidvalidity"]), (name, box)
            await user.release()
            life.users.remove(user)
