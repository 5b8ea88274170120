"""MIME: raw mails to structure, ENVELOPE, BODYSTRUCTURE, sections and text.

Bytes in, bytes out; no I/O and no state. Any bytes are a mail: nothing here raises on
wire data, everything takes linear time, and depth and number of parts are bounded
(DEPTH_MAX, `Budget`). Offsets, sizes and lines refer to the mail as stored. RFC 5322
(header), RFC 2045, 2046, 2047, 2183 (MIME), RFC 9051 §6.4.5 and §7.5.2 (what IMAP asks
for).
"""

from ._address import Address, addresses
from ._budget import ADDRESSES_MAX, CONTENT_BYTES_MAX, PARTS_MAX, VALUES_BYTES_MAX, Budget
from ._date import SentDate, parse_date, sent_date
from ._fields import (
    HEADER_BYTES_MAX,
    all_values,
    bounded,
    fields_cutter,
    header_end,
    header_fields,
    header_values,
    unfold,
)
from ._params import Parameters
from ._scan import DEPTH_MAX, Part, parse
from ._section import Section, find_part, section
from ._summary import Summary, summary
from ._text import decode_header, decoded, file_names, part_text, text_of, texts_of, to_text
from ._wire import body, bodystructure, envelope, forms_rev2, nstring, string

__all__ = [
    "ADDRESSES_MAX",
    "CONTENT_BYTES_MAX",
    "DEPTH_MAX",
    "HEADER_BYTES_MAX",
    "PARTS_MAX",
    "VALUES_BYTES_MAX",
    "Address",
    "Budget",
    "Parameters",
    "Part",
    "Section",
    "SentDate",
    "Summary",
    "addresses",
    "all_values",
    "body",
    "bodystructure",
    "bounded",
    "decode_header",
    "decoded",
    "envelope",
    "fields_cutter",
    "file_names",
    "find_part",
    "forms_rev2",
    "header_end",
    "header_fields",
    "header_values",
    "nstring",
    "parse",
    "parse_date",
    "part_text",
    "section",
    "sent_date",
    "string",
    "summary",
    "text_of",
    "texts_of",
    "to_text",
    "unfold",
]
