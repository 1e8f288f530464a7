"""Two tiny sets in the published formats of LoCoMo and LongMemEval, with texts of our own."""

from __future__ import annotations

from typing import Any


def locomo() -> list[dict[str, Any]]:
    """One conversation: twelve turns about a violin hide the turn that the third question names."""
    violin = [
        {"speaker": "Olha", "dia_id": f"D2:{number}", "text": f"The violin needs string {number}."}
        for number in range(1, 13)
    ]
    conversation = {
        "speaker_a": "Olha",
        "speaker_b": "Borys",
        "session_10_date_time": "12:05 am on 1 January, 2024",
        "session_10": [
            {"speaker": "Borys", "dia_id": "D10:1", "text": "Kharkiv has snow tonight."},
            {"speaker": "Olha", "dia_id": "D10:2", "text": "", "blip_caption": "a frozen fountain"},
            {"speaker": "Borys", "dia_id": "D10:3", "text": " "},
        ],
        "session_1_date_time": "1:56 pm on 8 May, 2023",
        "session_1": [
            {"speaker": "Olha", "dia_id": "D1:1", "text": "Morning!"},
            {
                "speaker": "Borys",
                "dia_id": "D1:2",
                "text": "My beehive produced lavender honey.",
                "img_url": ["https://images.invalid/1.jpg"],
                "blip_caption": "jars on a shelf",
                "query": "honey jars",
            },
        ],
        "session_2_date_time": "9:30 am on 20 May, 2023",
        "session_2": violin,
        "session_3_date_time": "9:30 am on 21 May, 2023",
    }
    return [
        {
            "sample_id": "conv-1",
            "conversation": conversation,
            "observation": {},
            "qa": [
                {
                    "question": "Which beehive produced lavender honey?",
                    "answer": "that of Borys",
                    "evidence": ["D1:2"],
                    "category": 4,
                },
                {
                    "question": "Where is the frozen fountain, in Kharkiv with snow tonight?",
                    "answer": "Kharkiv",
                    "evidence": ["D10:1; D:10:02", "D77:1"],
                    "category": 1,
                },
                {
                    "question": "Which string does the violin needs?",
                    "answer": 1,
                    "evidence": ["D1:1"],
                    "category": 2,
                },
                {"question": "Who?", "answer": "x", "evidence": ["D"], "category": 3},
                {
                    "question": "Whose cello?",
                    "adversarial_answer": "Olha's",
                    "evidence": ["D2:1"],
                    "category": 5,
                },
            ],
        }
    ]


def longmemeval() -> list[dict[str, Any]]:
    """Three questions: one with marked turns, one without, one that nothing answers."""
    answer = [
        {"role": "user", "content": "My telescope is a Dobsonian.", "has_answer": True},
        {"role": "assistant", "content": "A Dobsonian suits galaxies.", "has_answer": False},
    ]
    filler = [
        {"role": "user", "content": "Suggest soup with pumpkin."},
        {"role": "assistant", "content": "Roast the pumpkin first."},
        {"role": "assistant", "content": ""},
    ]

    def record(name: str, **fields: Any) -> dict[str, Any]:
        return {
            "question_id": name,
            "question_type": "single-session-user",
            "question": "Which telescope is a Dobsonian?",
            "answer": "a Dobsonian",
            "question_date": "2023/06/01 (Thu) 10:00",
            "haystack_session_ids": ["answer_1", "filler_1", "filler_1"],
            "haystack_dates": [
                "2023/05/20 (Sat) 02:21",
                "2023/05/02 (Tue) 23:59",
                "2023/05/25 (Thu) 08:00",
            ],
            "haystack_sessions": [answer, filler, filler],
            "answer_session_ids": ["answer_1"],
            **fields,
        }

    unmarked = [{**turn, "has_answer": None} for turn in answer]
    return [
        record("q1"),
        record("q2", question_type="multi-session", haystack_sessions=[unmarked, filler, filler]),
        record("q3_abs"),
    ]
