"""Tests of obox.mime: tables, comparison with the standard library, and random
bytes."""
