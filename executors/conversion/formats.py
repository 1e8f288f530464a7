"""What runs in the child: turns one PDF, DOCX or HTML file into parts of text."""

from __future__ import annotations

import base64
import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any

_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?([\w:.-]{1,40})", re.IGNORECASE)
_MARKS = re.compile(r"[\x02\ufffe]\s*|\0")
"""PDFium's marks for the hyphen of a word that continues on the next line, and NUL."""
MAX_PAGES = 10_000
"""A small file can name one page any number of times."""

MAX_UNPACKED_BYTES = 64 << 20
"""Of a DOCX file, whose XML takes many times that as objects."""

Part = dict[str, Any]


def convert(args: dict[str, Any], _context: object) -> list[Part]:
    """Returns parts `{"text", "page"?}`; texts of DOCX and HTML are Markdown.

    `args` are the `kind`, and the file as base64 in `data`. What a library raises about a damaged
    file is the reason of its refusal.
    """
    return list(_READERS[args["kind"]](base64.b64decode(args["data"])))


def _pdf(data: bytes) -> Iterator[Part]:
    import pypdfium2  # noqa: PLC0415  # each kind loads its own library

    for number, page in enumerate(pypdfium2.PdfDocument(data), 1):
        if number > MAX_PAGES:
            raise ValueError(f"more than {MAX_PAGES} pages")
        text = page.get_textpage().get_text_range().replace("\r\n", "\n")
        yield {"text": _MARKS.sub("", text), "page": number}
        page.close()


def _docx(data: bytes) -> Iterator[Part]:
    import mammoth  # noqa: PLC0415

    # Nothing reads more of a member than its entry in the directory says.
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(member.file_size for member in archive.infolist()) > MAX_UNPACKED_BYTES:
            raise ValueError(f"more than {MAX_UNPACKED_BYTES >> 20} MiB when unpacked")
    without_images = mammoth.images.img_element(lambda _image: {})
    yield _markdown(mammoth.convert_to_html(io.BytesIO(data), convert_image=without_images).value)


def _html(data: bytes) -> Iterator[Part]:
    named = _CHARSET.search(data[:4096])
    yield _markdown(data.decode(named[1].decode() if named else "utf-8-sig"))


def _markdown(html: str) -> Part:
    import html_to_markdown  # noqa: PLC0415

    options = html_to_markdown.ConversionOptions(
        extract_metadata=False,
        compact_tables=True,
        skip_images=True,
        inline_data_media="drop_element",
    )
    return {"text": html_to_markdown.convert(html, options).content or ""}


_READERS = {"pdf": _pdf, "docx": _docx, "html": _html}
