"""What runs in the child: turns one PDF, DOCX or HTML file into parts of text."""

from __future__ import annotations

import base64
import io
import re
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

MAX_PAGES = 10_000
MAX_TITLE = 200
MAX_LEVELS = 6
XML = (".xml", ".rels")
MAX_XML_BYTES = 64 << 20
BAD_PASSWORD = 4
"""PDFium's FPDF_ERR_PASSWORD."""
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?([\w:.-]{1,40})", re.IGNORECASE)
_HYPHEN = re.compile(r"[\x02\ufffe]\s*")
"""How PDFium marks the hyphen of a word that continues on the next line."""

Part = dict[str, Any]


class Refused(Exception):
    """The text is the reason."""


def convert(args: dict[str, Any], _context: object) -> list[Part]:
    """Returns parts `{"text", "page"?, "heading"?}`; texts of DOCX and HTML are Markdown.

    `args`: the `kind`, the file as base64 in `data`, and the `characters` that all texts together
    may have. Raises ValueError with the reason why the file is refused.
    """
    kind = args["kind"]
    try:
        return _bounded(_READERS[kind](base64.b64decode(args["data"])), args["characters"])
    except Refused as error:
        raise ValueError(str(error)) from None
    except ValueError:  # a library's own, about a damaged file
        raise RuntimeError from None


def _bounded(parts: Iterable[Part], characters: int) -> list[Part]:
    found = []
    for part in parts:
        characters -= len(part["text"])
        if characters < 0:
            raise Refused("it holds more text than a document may")
        if part["text"].strip():
            found.append(part | {"text": part["text"].replace("\0", "")})
    if not found:
        raise Refused("it holds no text; a scan needs text recognition first")
    return found


def _pdf(data: bytes) -> Iterator[Part]:
    import pypdfium2  # noqa: PLC0415  # each kind loads its own library

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", None) == BAD_PASSWORD:
            raise Refused("it is protected by a password") from None
        raise
    if len(document) > MAX_PAGES:
        raise Refused(f"it has more than {MAX_PAGES} pages")
    headings, heading = _outline(document), ""
    for number, page in enumerate(document, 1):
        heading = headings.get(number, heading)
        text = page.get_textpage().get_text_range().replace("\r\n", "\n")
        yield {"text": _HYPHEN.sub("", text), "page": number, "heading": heading}
        page.close()


def _outline(document: Any) -> dict[int, str]:
    """Returns the path of the first outline entry of each page that has one."""
    found: dict[int, str] = {}
    trail: list[str] = []
    for entry in document.get_toc(max_depth=MAX_LEVELS):
        trail = [*trail[: entry.level], " ".join(entry.get_title().split())[:MAX_TITLE]]
        target = entry.get_dest()
        page = target.get_index() if target else None
        if page is not None:
            found.setdefault(page + 1, " > ".join(filter(None, trail)))
    return found


def _docx(data: bytes) -> Iterator[Part]:
    import mammoth  # noqa: PLC0415

    with zipfile.ZipFile(io.BytesIO(data)) as archive:  # never reads more than is announced
        texts = [entry.file_size for entry in archive.infolist() if entry.filename.endswith(XML)]
    if sum(texts) > MAX_XML_BYTES:
        raise Refused(f"it unpacks to more than {MAX_XML_BYTES >> 20} MiB")
    html = mammoth.convert_to_html(
        io.BytesIO(data), convert_image=mammoth.images.img_element(lambda _image: {})
    )
    yield {"text": _markdown(html.value)}


def _html(data: bytes) -> Iterator[Part]:
    charset = "utf-8-sig"
    if not data.startswith(b"\xef\xbb\xbf") and (named := _CHARSET.search(data[:4096])):
        charset = named[1].decode()
    try:
        yield {"text": _markdown(data.decode(charset))}
    except (LookupError, UnicodeDecodeError):
        raise Refused(f"its text is not {charset[:40]}") from None


def _markdown(html: str) -> str:
    import html_to_markdown  # noqa: PLC0415

    options = html_to_markdown.ConversionOptions(
        extract_metadata=False,
        compact_tables=True,
        skip_images=True,
        inline_data_media="drop_element",
    )
    return html_to_markdown.convert(html, options).content or ""


_READERS = {"pdf": _pdf, "docx": _docx, "html": _html}
