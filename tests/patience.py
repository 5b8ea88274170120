"""How long tests wait for events that must come."""

PATIENT_S = 60.0
"""The seconds until a test stops waiting for an event that comes at once on an idle
machine. A hang is found, and a loaded machine has enough time. This is no bound of a
time that the product promises."""
