"""Documents of other kinds become text in a sandbox; hostile files are refused."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from contracts.memory.background import UnreadableFile
from contracts.memory.documents import DocumentPart
from executors.conversion import converter as conversion
from executors.conversion.converter import SandboxedConverter
from executors.python.tiers import HostTiers
from tests.support.events import RecordedEvents
from tests.support.memory.documents import WORD, document_xml, docx, pdf, stream
from tests.support.tools.sandbox_fixtures import host
from tests.support.tools.sandboxes import nothing_survives

__all__ = ["host"]

CHARACTERS = 100_000
PAGES = ("Статут кооперативу\nЗбори щочетверга", "Каса взаємо-\nдопомоги", "Ґанок її")


@pytest.fixture
async def converter(
    events: RecordedEvents, host: HostTiers, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[SandboxedConverter]:
    async def probed() -> HostTiers:
        return host

    monkeypatch.setattr(conversion, "probe_tiers", probed)
    limits = conversion.LIMITS.model_copy(update={"memory_mb": 256, "cpu_s": 4.0})
    monkeypatch.setattr(conversion, "LIMITS", limits)
    found = SandboxedConverter(events, characters=CHARACTERS, floor="landlock")
    async with nothing_survives(events):
        yield found
        await found.close()


async def test_a_pdf_becomes_its_pages(converter):
    assert await converter.convert("a.pdf", pdf(*PAGES)) == [
        DocumentPart(text="Статут кооперативу\nЗбори щочетверга", page=1),
        DocumentPart(text="Каса взаємодопомоги", page=2),
        DocumentPart(text="Ґанок її", page=3),
    ]
    (part,) = await converter.convert("A.PDF", pdf("", "Друга", compress=True))
    assert (part.page, part.text) == (2, "Друга")


async def test_docx_and_html_become_markdown(converter):
    (part,) = await converter.convert("a.docx", docx("# Статут", "Вступ", "## Каса", "До 18 & 19"))
    assert part.text == "# Статут\n\nВступ\n\n## Каса\n\nДо 18 & 19\n"
    page = """<title>Назва</title><nav>меню</nav><h1>Статут <b>кооперативу</b></h1><p>Вступ
        <p hidden>сховане</p><h2>Каса</h2><img src="data:image/png;base64,AAAA">
        <script>alert("скрипт")</script><table><tr><th>день<th>час<tr><td>четвер<td>18</table>"""
    (part,) = await converter.convert("a.html", page.encode())
    assert part.text.startswith("# Статут **кооперативу**\n\nВступ\n\n")
    assert "| четвер | 18 |" in part.text
    assert not any(word in part.text for word in ("меню", "сховане", "AAAA", "скрипт"))
    old = '<meta http-equiv="Content-Type" content="text/html; charset=windows-1251"><p>Їжак'
    (part,) = await converter.convert("a.htm", old.encode("cp1251"))
    assert part.text == "Їжак\n"


async def test_a_text_is_what_it_is(converter):
    (part,) = await converter.convert("a.md", "\ufeff# Каса <b>".encode())
    assert part == DocumentPart(text="# Каса <b>")


def xml(*pieces: bytes) -> bytes:
    opened = f'<w:document xmlns:w="{WORD}"><w:body>'.encode()
    return docx(document=[opened, *pieces, b"</w:body></w:document>"])


def entities(*declared: str) -> bytes:
    return docx(document=[document_xml(["&last;"], f"<!DOCTYPE x [{''.join(declared)}]>")])


def _same_page() -> bytes:
    return b"3 0 R " * 10_001


ENCRYPTION = b"/Encrypt << /Filter /Standard /V 1 /R 2 /O <%s> /U <%s> /P -4 >> /ID [<00> <00>]"
EMPTY = "no text"
BROKEN = "cannot be read as"
LONG = f"more than {CHARACTERS} characters"
EXHAUSTED = "out of the memory|used up its CPU time|ended without a result|MemoryError|more than"
"""Which limit ends it depends on the machine."""
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "unpacks.docx": (lambda: xml(*[b" " * (13 << 20)] * 5), "more than 64 MiB when unpacked"),
    "elements.docx": (lambda: xml(b"<w:p/>" * 1_000_000), EXHAUSTED),
    "laughs.docx": (
        lambda: entities(
            "<!ENTITY e0 'хахаха'>",
            *(f"<!ENTITY e{n} '{f'&e{n - 1};' * 30}'>" for n in range(1, 9)),
            "<!ENTITY last '&e8;'>",
        ),
        f"amplification|{EXHAUSTED}",
    ),
    "outside.docx": (lambda: entities("<!ENTITY last SYSTEM 'file:///etc/passwd'>"), EMPTY),
    "deep.docx": (lambda: xml(b"<w:sdt><w:sdtContent>" * 50_000), BROKEN),
    "truncated.docx": (lambda: docx("Каса")[:-100], BROKEN),
    "not-word.docx": (lambda: docx("Каса").replace(b"word/document", b"word/dokument"), BROKEN),
    "deep.html": (lambda: b"<div>" * 100_000 + b"text", EMPTY),
    "slow.html": (lambda: b"<b><i><table>" * 200_000 + b"text", EXHAUSTED),
    "long.html": (lambda: b"x " * CHARACTERS, LONG),
    "charset.html": (lambda: b'<meta charset="nonsense"><p>x', "unknown encoding"),
    "latin.html": (lambda: b"<p>\xcfx", "can't decode byte"),
    "scan.pdf": (lambda: pdf("", ""), EMPTY),
    "protected.pdf": (
        lambda: pdf("x", trailer=ENCRYPTION % (b"11" * 32, b"22" * 32)),
        "Incorrect password",
    ),
    "truncated.pdf": (lambda: pdf(*PAGES)[:800], BROKEN),
    "noise.pdf": (lambda: b"%PDF-1.7\n" + bytes(range(256)) * 1_000, BROKEN),
    "pages.pdf": (
        lambda: pdf("x", replaced={2: b"<< /Type /Pages /Count 2000000000 /Kids [2 0 R 2 0 R] >>"}),
        BROKEN,
    ),
    "repeats.pdf": (
        lambda: pdf(
            "x", replaced={2: b"<< /Type /Pages /Count 10001 /Kids [%s] >>" % _same_page()}
        ),
        "more than 10000 pages",
    ),
    "nested.pdf": (lambda: pdf("x", replaced={1: b"[" * 1_000_000}), BROKEN),
    "inflates.pdf": (lambda: pdf(("x" * 1_000 + "\n") * 5_000, compress=True), EXHAUSTED),
    "long.pdf": (lambda: pdf("x" * 999, *["y" * 999] * 120), LONG),
    "word.pdf": (lambda: docx("Каса"), BROKEN),
    "page.docx": (lambda: pdf("Каса"), BROKEN),
    "page.html": (lambda: pdf("Каса", compress=True), BROKEN),
    "page.md": (lambda: pdf("Каса") + b"\xff", "not UTF-8"),
    "program.txt": (lambda: b"\x7fELF\0", "NUL"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_file_is_refused_with_the_reason(converter, name):
    made, reason = HOSTILE[name]
    with pytest.raises(UnreadableFile, match=reason) as refused:
        await converter.convert(name, made())
    assert not refused.value.for_now


BOUNDED: dict[str, tuple[Callable[[], bytes], str]] = {
    "count.pdf": (lambda: _with_count(2_000_000_000), "x"),
    "attributes.html": (lambda: b"<p " + b"a=b " * 500_000 + b">x", "x\n"),
}


def _with_count(count: int) -> bytes:
    return pdf("x").replace(b"/Count 1", b"/Count %d" % count)


@pytest.mark.parametrize("name", BOUNDED)
async def test_a_strange_file_is_read_as_far_as_it_goes(converter, name):
    made, text = BOUNDED[name]
    (part,) = await converter.convert(name, made())
    assert part.text == text


@pytest.mark.parametrize(
    "parts", [[{"text": "x", "page": 1}] * 10_001, [{"text": "x", "page": 2**31}]]
)
async def test_an_answer_of_the_child_beyond_the_bounds_is_refused(converter, monkeypatch, parts):
    class Answer:
        ok, result = True, parts

    class Executor:
        async def execute(self, _execution: object) -> Answer:
            return Answer()

        async def close(self) -> None: ...

    monkeypatch.setattr(converter, "_executor", Executor())
    with pytest.raises(UnreadableFile, match="cannot be stored"):
        await converter.convert("a.pdf", b"")


async def test_a_file_has_neither_network_nor_other_files(converter):
    """A font or an image that a PDF file names by a URL or a path is not fetched."""
    action = b"<< /Type /Action /S /URI /URI (http://127.0.0.1:9/x) >>"
    catalogue = b"<< /Type /Catalog /Pages 2 0 R /OpenAction %s >>" % action
    linked = stream(b"q").replace(b"<<", b"<< /F (/etc/passwd)", 1)
    (part,) = await converter.convert("a.pdf", pdf("x", replaced={1: catalogue, 99: linked}))
    assert part.text == "x"


async def test_two_files_at_a_time_and_others_wait(converter):
    found = await asyncio.gather(
        *(converter.convert("a.pdf", pdf(f"Сторінка {number}")) for number in range(6))
    )
    assert [parts[0].text for parts in found] == [f"Сторінка {number}" for number in range(6)]


async def test_below_the_floor_no_file_is_converted(events, monkeypatch):
    async def probed() -> HostTiers:
        return HostTiers(("process",))

    monkeypatch.setattr(conversion, "probe_tiers", probed)
    weak = SandboxedConverter(events, characters=CHARACTERS, floor="landlock")
    with pytest.raises(UnreadableFile, match="isolation tier `landlock`") as refused:
        await weak.convert("a.pdf", pdf("x"))
    assert refused.value.for_now
    assert await weak.convert("a.md", b"x") == [DocumentPart(text="x")]
