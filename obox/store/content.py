"""What the protocols need of a mail's content: the mime room, through the store's door."""

from ..mime import Section, header_fields, parse, section
from ._mail import make_fields

__all__ = ["Section", "header_fields", "make_fields", "parse", "section"]
