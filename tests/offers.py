"""Versions of forms that the product reads and does not offer yet.

Tests that run in one process play a product that offers them, because that is what they
are for: the product will offer a version when what these tests do not show has been
mended as well. Real processes of tests/e2e are the product as it is.
"""

from __future__ import annotations

from obox.forms import FORMS, offered

BY_THE_PRODUCT = offered()
"""What the product offers."""

for name, form in list(FORMS.items()):
    FORMS[name] = form._replace(offers=None)
