"""Whether a picture contains nothing but a plot: no script, no link, no other file. For pictures that cannot be drawn again here."""

import re
import struct
import zlib
from xml.parsers import expat

ELEMENTS = frozenset((
    "svg", "g", "defs", "path", "use", "rect", "clipPath", "text", "tspan", "style", "metadata", "rdf:RDF", "cc:Work", "cc:Agent",
    "dc:type", "dc:format", "dc:creator", "dc:title", "dc:date",
))  # fmt: skip
ATTRIBUTES = frozenset((
    "id", "d", "x", "y", "width", "height", "viewBox", "version", "transform", "style", "clip-path", "xlink:href", "xmlns",
    "xmlns:xlink", "xmlns:rdf", "xmlns:cc", "xmlns:dc", "rdf:resource", "type",
))  # fmt: skip
LINKS = re.compile(r"url\((?!#[\w.-]+\))|@import|\\|expression|:\s*//", re.IGNORECASE)  # in a style
CHUNKS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"gAMA", b"sRGB", b"tEXt", b"pHYs", b"IDAT", b"IEND"))
SIGNATURE = b"\x89PNG\r\n\x1a\n"


class _NotPlain(Exception):
    pass


def is_plain(content: bytes) -> bool:
    """Whether an SVG has only the elements and attributes that matplotlib writes, or a PNG only chunks of a picture.

    Args:
        content: content of the file.
    """
    return _plain_png(content) if content.startswith(SIGNATURE) else _plain_svg(content)


def _plain_svg(content: bytes) -> bool:
    parser = expat.ParserCreate(encoding="utf-8")
    parser.StartElementHandler = _check_element
    parser.ProcessingInstructionHandler = parser.EntityDeclHandler = _refuse
    parser.CharacterDataHandler = _check_text
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, _NotPlain):
        return False
    return True


def _refuse(*_: object) -> None:
    raise _NotPlain


def _check_element(name: str, attributes: dict[str, str]) -> None:
    if name not in ELEMENTS or not attributes.keys() <= ATTRIBUTES:
        raise _NotPlain
    if not attributes.get("xlink:href", "#").startswith("#"):
        raise _NotPlain
    if any(LINKS.search(attributes.get(key, "")) for key in ("style", "clip-path")):
        raise _NotPlain


def _check_text(text: str) -> None:
    if re.search(r"url\(|@import|\\", text, re.IGNORECASE):  # the text may be that of a style
        raise _NotPlain


def _plain_png(content: bytes) -> bool:
    place = len(SIGNATURE)
    while place + 12 <= len(content):
        (length,), kind = struct.unpack_from(">I", content, place), content[place + 4 : place + 8]
        end = place + 12 + length
        if kind not in CHUNKS or end > len(content):
            return False
        if struct.unpack_from(">I", content, end - 4)[0] != zlib.crc32(content[place + 4 : end - 4]):
            return False
        if kind == b"IEND":
            return bool(end == len(content))
        place = end
    return False
