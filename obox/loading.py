"""Modules that few processes need, and that are imported in a thread when they are
needed, so that a start does not read them."""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module


async def loaded(name: str) -> None:
    """Import a module that has not been imported yet."""
    if name not in sys.modules:
        await asyncio.to_thread(import_module, name)
