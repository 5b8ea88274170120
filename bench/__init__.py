"""Measurements of obox beside Dovecot: `python -m bench`. docs/benchmarks.md explains
them.
"""
