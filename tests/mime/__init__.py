"""Tests of obox.mime: tables, the standard library as witness, any bytes."""
