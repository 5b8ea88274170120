"""The kind of file system that a path is on, from the kernel's table of mounts.

LMDB maps its file into memory and locks it with the kernel of one machine. On a network
file system two machines would overwrite each other's pages without noticing it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

MOUNTS: Final = Path("/proc/self/mountinfo")
"""proc_pid_mountinfo(5). Systems without that file are not checked."""

NETWORK: Final = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.cephfs",
    "fuse.davfs2", "fuse.gcsfuse", "fuse.glusterfs", "fuse.goofys", "fuse.grpcfuse", "fuse.juicefs", "fuse.mfs",
    "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2",
    "orangefs", "pvfs2", "smb3", "smbfs",
})  # fmt: skip
"""Types of mounts whose files other machines may write at the same time."""


def network_mount(path: Path, mounts: Path = MOUNTS) -> str:
    """Return the type of the network file system that `path` is on, "" where it is on a
    local one. The path need not exist.
    """
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    real = os.path.realpath(path)
    found, kind = "", ""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        if len(parts := fields.split(" ")) < 5 or not rest:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), parts[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        # Of two mounts on one point the later hides the other.
        if inside and len(point) >= len(found):
            found, kind = point, rest.split(" ")[0]
    return kind if kind in NETWORK else ""
