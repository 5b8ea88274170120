"""obox: a mail backend that keeps mails and indexes in a bucket.

The bucket is the mail system; every machine is a cache (docs/format.md, docs/flow.md).
"""

import sys

if "structlog" not in sys.modules and "rich" not in sys.modules:
    # structlog imports rich if it is installed, for tracebacks that our log does not
    # use: 45 ms of each start. A name that is None in sys.modules raises ImportError,
    # for which structlog is prepared.
    sys.modules["rich"] = None  # type: ignore[assignment]  # the import system allows None, typeshed does not
    try:
        import structlog  # noqa: F401 - only its import counts
    finally:
        del sys.modules["rich"]

__version__ = "0.1.0"
