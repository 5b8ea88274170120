"""The checkout goes first on the path: this directory has the package's name and would
hide an editable install."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
