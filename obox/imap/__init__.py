"""IMAP: RFC 3501, and RFC 9051 where the two agree. Parser and writer are pure: bytes
in, events out.

parser.py   Parser: bytes -> events            ast.py    a struct per command
wire.py     strings, dates, status lines       events.py what else the parser says
sets.py     sequence sets                      utf7.py   mailbox names
"""
