"""Documents are cut along their headings."""

import pytest

from services.memory.sections import sections


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
