"""PDF and DOCX files, written byte by byte: good ones, and the parts of hostile ones."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from xml.sax.saxutils import escape

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
TYPES = f"""<Types xmlns="{PACKAGE}/content-types">
<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>
<Default Extension="xml" ContentType="application/xml"/></Types>"""
RELATIONS = f"""<Relationships xmlns="{PACKAGE}/relationships">
<Relationship Id="r1" Type="{OFFICE}/officeDocument" Target="word/document.xml"/></Relationships>"""
STYLES = f"""<w:styles xmlns:w="{WORD}">
<w:style w:type="paragraph" w:styleId="H1"><w:name w:val="heading 1"/></w:style>
<w:style w:type="paragraph" w:styleId="H2"><w:name w:val="heading 2"/></w:style></w:styles>"""


def docx(*paragraphs: str, document: bytes | Iterable[bytes] | None = None) -> bytes:
    """Returns a DOCX file; `# A` and `## A` are headings. `document` replaces its XML."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", TYPES)
        archive.writestr("_rels/.rels", RELATIONS)
        archive.writestr("word/styles.xml", STYLES)
        with archive.open("word/document.xml", "w") as entry:
            for piece in [document_xml(paragraphs)] if document is None else document:
                entry.write(piece)
    return file.getvalue()


def document_xml(paragraphs: Iterable[str], doctype: str = "") -> bytes:
    body = "".join(_paragraph(text) for text in paragraphs)
    return f'{doctype}<w:document xmlns:w="{WORD}"><w:body>{body}</w:body></w:document>'.encode()


def _paragraph(text: str) -> str:
    level = len(text) - len(text.lstrip("#"))
    style = f'<w:pPr><w:pStyle w:val="H{level}"/></w:pPr>' if level else ""
    shown = text.lstrip("# ") if level else text
    shown = shown if shown.startswith("&") else escape(shown)
    return f"<w:p>{style}<w:r><w:t>{shown}</w:t></w:r></w:p>"


def pdf(
    *pages: str,
    replaced: Mapping[int, bytes] | None = None,
    trailer: bytes = b"",
    compress: bool = False,
) -> bytes:
    """Returns a PDF file of these pages; a line of text is a line of the page.

    Object 1 is the catalogue, 2 the page tree; `replaced` holds objects to put in their place.
    """
    objects = _Objects()
    text = "".join(pages)
    codes = {character: number for number, character in enumerate(sorted(set(text)), 1)}
    font = _font(objects, codes)
    kids = [_page(objects, page, codes, font, compress=compress) for page in pages]
    objects[1] = b"<< /Type /Catalog /Pages 2 0 R >>"
    objects[2] = b"<< /Type /Pages /Count %d /Kids [%s] >>" % (
        len(kids),
        b" ".join(b"%d 0 R" % kid for kid in kids),
    )
    objects.update(replaced or {})
    return objects.file(trailer)


class _Objects(dict[int, bytes]):
    """Numbered objects; the first two are the document's own."""

    def reserve(self) -> int:
        number = max(2, *self, 2) + 1
        self[number] = b"null"
        return number

    def add(self, content: bytes) -> int:
        number = self.reserve()
        self[number] = content
        return number

    def file(self, trailer: bytes) -> bytes:
        out = bytearray(b"%PDF-1.7\n")
        places = {}
        for number in sorted(self):
            places[number] = len(out)
            out += b"%d 0 obj\n%s\nendobj\n" % (number, self[number])
        table = len(out)
        out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(places) + 1)
        out += b"".join(b"%010d 00000 n \n" % places[number] for number in sorted(places))
        size = len(places) + 1
        out += b"trailer << /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF" % (
            size,
            trailer,
            table,
        )
        return bytes(out)


def stream(content: bytes, *, compress: bool = False) -> bytes:
    if not compress:
        return b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content)
    packed = zlib.compress(content, 9)
    return b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(packed), packed)


def _font(objects: _Objects, codes: Mapping[str, int]) -> int:
    """A font without glyphs, whose codes are mapped to Unicode."""
    pairs = "".join(
        f"1 beginbfchar\n<{code:04X}> <{character.encode('utf-16-be').hex()}>\nendbfchar\n"
        for character, code in codes.items()
    )
    cmap = (
        "/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /X def "
        f"/CMapType 2 def 1 begincodespacerange <0000> <FFFF> endcodespacerange\n{pairs}"
        "endcmap end end"
    )
    unicode = objects.add(stream(cmap.encode()))
    descriptor = objects.add(
        b"<< /Type /FontDescriptor /FontName /X /Flags 4 /FontBBox [0 0 1000 1000] /ItalicAngle 0 "
        b"/Ascent 800 /Descent -200 /CapHeight 700 /StemV 80 >>"
    )
    descendant = objects.add(
        b"<< /Type /Font /Subtype /CIDFontType2 /BaseFont /X /CIDSystemInfo << /Registry (Adobe) "
        b"/Ordering (Identity) /Supplement 0 >> /DW 500 /FontDescriptor %d 0 R >>" % descriptor
    )
    return objects.add(
        b"<< /Type /Font /Subtype /Type0 /BaseFont /X /Encoding /Identity-H "
        b"/DescendantFonts [%d 0 R] /ToUnicode %d 0 R >>" % (descendant, unicode)
    )


def _page(
    objects: _Objects, text: str, codes: Mapping[str, int], font: int, *, compress: bool
) -> int:
    lines = ("".join(f"{codes[character]:04X}" for character in line) for line in text.split("\n"))
    shown = "".join(f"<{line}> Tj T* " for line in lines)
    content = objects.add(
        stream(f"BT /F 12 Tf 72 720 Td 14 TL {shown}ET".encode(), compress=compress)
    )
    return objects.add(
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents %d 0 R "
        b"/Resources << /Font << /F %d 0 R >> >> >>" % (content, font)
    )
