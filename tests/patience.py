"""How long tests wait for what must come."""

PATIENT_S = 60.0
"""Seconds until a test gives up on something that comes at once on an idle machine: a
hang is found, and a machine under load is given its time. It bounds no time that the
product promises."""
