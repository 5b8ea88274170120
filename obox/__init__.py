"""obox: a mail backend that keeps mails and indexes in a bucket.

The bucket is the mail system; every machine is a cache (docs/format.md, docs/flow.md).
"""

__version__ = "0.1.0"
