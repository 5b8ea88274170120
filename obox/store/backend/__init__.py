"""What a running backend does: it opens users for sessions, knows which users are its
own, gains and loses them, and does the work beside the sessions.
"""
