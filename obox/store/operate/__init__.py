"""What an administrator does to whole users: delete, repair, pull, upgrade.

Verbs use it; protocols do not.
"""
