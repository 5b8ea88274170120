"""Measurements of obox beside Dovecot: `python -m bench`, what they mean is in docs/benchmarks.md."""
