"""POP3, for clients that download mails. RFC 1939, 2449, 2595, 3206, 5034, 6856.

    server.py      makes a connection for each client
    connection.py  the driver: hands lines to the machine
    lines.py       makes lines of the input, and of mails that are sent; pure
    machine.py     answers a line by the table of commands
    commands.py    the table, and the commands after the login
    access.py      the commands before the login
    session.py     the state of a session, and its end
    maildrop.py    the mails of a session: numbers, sizes, marks, unique ids
    replies.py     answers, and the table that maps our failures to answers
    context.py     what all sessions share: locks, and the times of logins

docs/pop3.md has the states, the order of steps and the response codes. This room knows
the store by its `api` alone.
"""

from obox.pop3.server import Pop3Server
from obox.pop3.settings import Pop3Settings

__all__ = ["Pop3Server", "Pop3Settings"]
