"""Documents are cut along their headings."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.memory.sections import Section, sections


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("\n\n", []),
        ("без заголовка", [("", 1, "без заголовка")]),
        ("# А\nа\n## Б\nб\n# В\nв", [("А", 2, "а"), ("А > Б", 4, "б"), ("В", 6, "в")]),
        ("### Глибоко\nа\n# Високо\nб", [("Глибоко", 2, "а"), ("Високо", 4, "б")]),
        ("# А ##\n\n\nтекст", [("А", 4, "текст")]),
        ("# Лише заголовок", []),
        ("#не заголовок", [("", 1, "#не заголовок")]),
        ("```\n# код\n```\n# А\nа", [("", 1, "```\n# код\n```"), ("А", 5, "а")]),
        ("~~~\nА\n===\n~~~", [("", 1, "~~~\nА\n===\n~~~")]),
        ("А\n===\nа\n\nБ\n---\nб", [("А", 3, "а"), ("А > Б", 7, "б")]),
        ("Довгий\nзаголовок\n===\nа", [("Довгий заголовок", 4, "а")]),
        ("    # відступ\n\nа", [("", 1, "# відступ\n\nа")]),
        ("<!--\n# схований\n-->\n# А\nа", [("", 1, "<!--\n# схований\n-->"), ("А", 5, "а")]),
        ("<details>\n# у блоці\n</details>", [("", 1, "<details>\n# у блоці\n</details>")]),
        ("> # цитата\n\n- # пункт", [("", 1, "> # цитата\n\n- # пункт")]),
        (
            "---\ntitle: А\n# примітка\n---\n# Б\nб",
            [("", 1, "---\ntitle: А\n# примітка\n---"), ("Б", 6, "б")],
        ),
        ("---\n\n# А\nа\n\n---", [("", 1, "---"), ("А", 4, "а\n\n---")]),
        ("---\n# А\nа", [("", 1, "---"), ("А", 3, "а")]),
        ("# А\rа\r\n## Б\nб", [("А", 2, "а"), ("А > Б", 4, "б")]),
        ("# А\nа\fб\u2028в\n# Б\nб", [("А", 2, "а\fб\u2028в"), ("Б", 4, "б")]),
        ("# А\r\nа\r\n", [("А", 2, "а")]),
        (
            "The door code is 4711.\nAsk Olena.\n---\n# Next\nbody",
            [("", 1, "The door code is 4711.\nAsk Olena.\n---"), ("Next", 5, "body")],
        ),
        ("# А\nа\n\nОлена\n--", [("А", 2, "а\n\nОлена\n--")]),
        ("Код 4711\n===\n## Порожній\n# В\nв", [("", 1, "Код 4711\n==="), ("В", 5, "в")]),
        ("Код 4711\n===\n## Б\nб", [("Код 4711 > Б", 4, "б")]),
        ("а\n---\nб\n---", [("", 1, "а\n---\nб\n---")]),
        ("# А\nКод 4711\n---\n# В\nв", [("А", 2, "Код 4711\n---"), ("В", 5, "в")]),
        (f"# {'А' * 200}\nа", [("А" * 200, 2, "а")]),
        (f"# {'А' * 201}\nа", [("", 1, f"# {'А' * 201}\nа")]),
    ],
)
def test_sections(text: str, expected: list[tuple[str, int, str]]):
    assert [
        (section.heading, section.line, section.text) for section in sections(text, markdown=True)
    ] == expected


def test_plain_text_has_no_headings():
    assert [
        (section.heading, section.line) for section in sections("# 1\n# 2", markdown=False)
    ] == [("", 1)]


def test_a_paragraph_above_a_dividing_line_is_not_a_heading_over_what_follows():
    lines = "a\n" * 50_000 + "==="
    assert list(sections(lines, markdown=True)) == [Section("", 1, lines)]
    found = sections(f"{lines}\nтекст", markdown=True)
    assert list(found) == [Section("", 1, f"{lines}\nтекст")]


def test_parsing_a_list_takes_little_memory():
    """All tokens of the parser would be a few hundred times the text."""
    text = "- a\n" * 20_000
    tracemalloc.start()
    list(sections(text, markdown=True))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * len(text)


@given(
    st.lists(
        st.sampled_from(["# А", "## Б", "### В", "===", "---", "", "рядок", "- п", "> ц", "```"])
    )
)
def test_every_line_of_text_is_found(kinds: list[str]):
    """As text, or in the path of headings above some text."""
    lines = [kind.replace("рядок", f"рядок{number}") for number, kind in enumerate(kinds)]
    found = list(sections("\n".join(lines), markdown=True))
    words = {word for each in found for word in f"{each.heading} {each.text}".split()}
    assert {line for line in lines if line.startswith("рядок")} <= words
