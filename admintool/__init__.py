"""oboxadm: the command line of an administrator, with the nouns and verbs of doveadm.

One file per noun. Data goes to stdout, everything else to stderr. Fields of `-f json`
and exit codes (sysexits, as doveadm's) are API. A command imports large modules only
when it runs.
"""

from admintool._root import cli

__all__ = ["cli"]
