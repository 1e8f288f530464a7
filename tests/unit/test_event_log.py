"""The event log: what cannot be written is told without its contents, and never ends the thread."""

import json
import logging

from backends.event_log import FileEventLog


def test_events_are_written_after_a_failing_listener_and_an_event_that_is_no_json(tmp_path, caplog):
    def failing(batch):
        raise ValueError("таємне слово")

    file = tmp_path / "events.jsonl"
    with caplog.at_level(logging.ERROR):
        log = FileEventLog(file, "test", [failing])
        log.emit("first", number=2**70, text="таємне слово")
        log.emit("second", number=1)
        log.close()
        log = FileEventLog(file, "test", [failing])
        log.emit("third")
        log.close()
    assert [json.loads(line)["event"] for line in file.read_text().splitlines()] == ["second", "third"]
    assert "first could not be written: TypeError" in caplog.text
    assert "a listener of the event log failed: ValueError" in caplog.text
    assert "таємне" not in caplog.text
