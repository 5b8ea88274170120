"""Puts the checkout first on the path. Otherwise this directory, which has the name of
the package, would hide an editable install."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
