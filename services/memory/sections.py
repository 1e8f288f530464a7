"""Cuts a document into sections along its headings. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from markdown_it import MarkdownIt
from markdown_it.token import Token

_MARKDOWN = MarkdownIt("commonmark")
_LINE_END = re.compile(r"\r\n|\r|\n")
"""CommonMark's line endings. `str.splitlines` knows more, so its line numbers would differ."""
LONGEST_HEADING = 200
"""Characters; a longer heading is text. This bounds the path of headings before each chunk."""


@dataclass(frozen=True, slots=True)
class Section:
    """Text below one heading.

    `heading` is the path of headings, `A > B`; `line` the number of the text's first line, from 1.
    """

    heading: str
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class _Heading:
    """A heading in the lines `begin` to `end` (exclusive), from 0."""

    level: int
    title: str
    is_setext: bool
    begin: int
    end: int


def sections(text: str, *, markdown: bool) -> Iterator[Section]:
    """Returns the sections of a document; a text without headings is one section.

    Headings are CommonMark's, `# A` or underlined, at the top level of the document: those in code,
    HTML, quotes, lists and front matter are text. So is an underlined one without any text below:
    it is a paragraph above a dividing line, which would be lost as a heading. The sections are made
    one by one, because the headings above may be much longer than the text.
    """
    lines = _LINE_END.split(text)
    headings = _headings(lines) if markdown else []
    # First pass: which headings have text below. A setext heading with none is kept as text.
    above_text = {heading for trail, _ in _cut(lines, headings) for heading in trail}
    headings = [each for each in headings if each in above_text or not each.is_setext]
    return (section for _, section in _cut(lines, headings))


def _cut(lines: list[str], headings: list[_Heading]) -> Iterator[tuple[list[_Heading], Section]]:
    """Yields each section that is not blank, with the headings above it."""
    trail: list[_Heading] = []
    begins = [0, *(heading.end for heading in headings)]
    ends = [*(heading.begin for heading in headings), len(lines)]
    for heading, begin, end in zip([None, *headings], begins, ends, strict=True):
        if heading:
            trail = [above for above in trail if above.level < heading.level] + [heading]
        text = "\n".join(lines[begin:end]).strip()
        if text:
            first = next(number for number in range(begin, end) if lines[number].strip())
            path = " > ".join(above.title for above in trail if above.title)
            yield trail, Section(path, first + 1, text)


def _headings(lines: list[str]) -> list[_Heading]:
    front = _front_matter(lines)
    tokens = _HeadingTokens()
    _MARKDOWN.block.parse("\n".join([""] * front + lines[front:]), _MARKDOWN, {}, tokens)
    found = [
        _Heading(
            int(token.tag[1:]),
            " ".join(content.content.split()),
            not token.markup.startswith("#"),
            *token.map,
        )
        for token, content in pairwise(tokens)
        if token.type == "heading_open" and token.map
    ]
    return [heading for heading in found if len(heading.title) <= LONGEST_HEADING]


class _HeadingTokens(list[Token]):
    """Keeps the parser's tokens of headings at the top level, and of their titles.

    The tokens of a 2 MiB list take 1 GB, and the garbage collector stops every thread for up to a
    second while it goes through them, so only headings are kept.
    """

    def append(self, token: Token) -> None:
        is_title = bool(self) and self[-1].type == "heading_open"
        if is_title or (token.type == "heading_open" and token.level == 0):
            super().append(token)


def _front_matter(lines: list[str]) -> int:
    """Returns the number of lines of YAML front matter: from `---` at the start to `---` or `...`.

    A blank line after the first `---` makes it a thematic break.
    """
    if lines[0].rstrip() != "---" or not "".join(lines[1:2]).strip():
        return 0
    ends = (number for number, line in enumerate(lines[1:], 2) if line.rstrip() in {"---", "..."})
    return next(ends, 0)
