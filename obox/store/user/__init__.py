"""A user and the user's mailboxes, as sessions use them.

`user.User` has what sessions ask of a user, `boxes.Boxes` the boxes in memory, and
`mailbox.Mailbox` what sessions ask of a mailbox. Each other file has one procedure:
opening (`discover`, `unclean`), upload (`flush`), search, copies, and the names of
mailboxes.
"""
