"""What the protocols need of a mail's content: the public names of `obox.mime`."""

from ..mime import Budget, Part, Section, fields_cutter, forms_rev2, header_end, parse, section
from .mails.meta import INLINE_MAX, make_fields

__all__ = [
    "INLINE_MAX",
    "Budget",
    "Part",
    "Section",
    "fields_cutter",
    "forms_rev2",
    "header_end",
    "make_fields",
    "parse",
    "section",
]
