"""What a mailbox and a user's list of mailboxes have in common, and what each of them
adds.

A box is a state that changes only by joins, with a local copy and bundles in the
bucket. `box` loads, compares, changes and uploads one; `bundles` are its objects in the
bucket. The list of mailboxes is `root`, a mailbox is `index`, and `slots` hands out the
UIDs of a mailbox in order.
"""
