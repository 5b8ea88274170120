"""A module for each command, or for a few related commands. `obox.imap.states` says
when each is allowed.

A handler takes the session and the parsed command, writes its untagged lines, and
returns the tagged line.
"""
