"""The secrets of a cluster: each line of a file is a secret. The first secret signs,
and all are accepted.

Empty lines, and lines that begin with "#", are left out. A short secret, or a file that
others can read, gives a warning and is used, so that an operator who rotates secrets
does not lose the cluster.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final

from obox.errors import ConfigError

SECRET_CHARS_MIN: Final = 32
"""A shorter secret gives a warning. These are 128 bits in hexadecimal digits."""
SECRETS_MAX: Final = 16
"""A file has at most 16 secrets, since each login over the link tries all."""


def read_secrets(path: Path) -> tuple[tuple[bytes, ...], list[str]]:
    """Return the secrets of a file, and the warnings for an operator.

    Raises ConfigError, with a line that names the file.
    """
    try:
        mode, text = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise ConfigError(f'cluster.secret_file = "{path}": {error.strerror}') from error
    lines = [line.strip() for line in text.splitlines()]
    secrets = tuple(dict.fromkeys(line for line in lines if line and not line.startswith(b"#")))
    if not 0 < len(secrets) <= SECRETS_MAX:
        raise ConfigError(
            f'cluster.secret_file = "{path}": {len(secrets)} secrets; allowed: one a line, 1 to {SECRETS_MAX}'
        )
    problems = []
    if any(len(secret) < SECRET_CHARS_MIN for secret in secrets):
        problems.append(f"a secret has fewer than {SECRET_CHARS_MIN} characters")
    if mode & (stat.S_IRGRP | stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH):
        problems.append("others than its owner can read or write the file; make it mode 0600")
    return secrets, problems
