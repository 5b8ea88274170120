"""oboxadm: the command line of an administrator, with the nouns and verbs of doveadm.

One file per noun. Data goes to stdout, all else to stderr; fields of `-f json` and exit
codes (sysexits, as doveadm's) are API. Nothing heavy is imported before the command
that needs it.
"""

from admintool._root import cli

__all__ = ["cli"]
