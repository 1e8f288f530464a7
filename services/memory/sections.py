"""Cuts a document into sections along its headings. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from markdown_it import MarkdownIt

# Headings are blocks: what stands inside paragraphs is not parsed.
_MARKDOWN = MarkdownIt("commonmark").disable(["inline", "text_join"])
_LINE_END = re.compile(r"\r\n|\r|\n")
"""CommonMark's line endings. `str.splitlines` knows more, so its line numbers would differ."""


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
    begin: int
    end: int


def sections(text: str, *, markdown: bool) -> list[Section]:
    """Returns the sections of a document; a text without headings is one section.

    Headings are CommonMark's, `# A` or underlined, at the top level of the document: those in code,
    HTML, quotes, lists and front matter are text.
    """
    lines = _LINE_END.split(text)
    found: list[Section] = []
    trail: list[_Heading] = []
    begin = 0
    for heading in _headings(lines) if markdown else []:
        _add(found, trail, lines, begin, heading.begin)
        trail = [above for above in trail if above.level < heading.level] + [heading]
        begin = heading.end
    _add(found, trail, lines, begin, len(lines))
    return found


def _add(
    found: list[Section], trail: list[_Heading], lines: list[str], begin: int, end: int
) -> None:
    text = "\n".join(lines[begin:end]).strip()
    if text:
        first = next(number for number in range(begin, end) if lines[number].strip())
        path = " > ".join(heading.title for heading in trail if heading.title)
        found.append(Section(path, first + 1, text))


def _headings(lines: list[str]) -> list[_Heading]:
    front = _front_matter(lines)
    tokens = _MARKDOWN.parse("\n".join([""] * front + lines[front:]))
    return [
        _Heading(int(token.tag[1:]), " ".join(content.content.split()), *token.map)
        for token, content in pairwise(tokens)
        if token.type == "heading_open" and token.level == 0 and token.map
    ]


def _front_matter(lines: list[str]) -> int:
    """Returns the number of lines of YAML front matter: from `---` at the start to `---` or `...`.

    A blank line after the first `---` makes it a thematic break.
    """
    if lines[0].rstrip() != "---" or not "".join(lines[1:2]).strip():
        return 0
    ends = (number for number, line in enumerate(lines[1:], 2) if line.rstrip() in {"---", "..."})
    return next(ends, 0)
