"""IMAP: RFC 3501, and RFC 9051 where the two agree. Parser and writer are pure: bytes in, events out."""
