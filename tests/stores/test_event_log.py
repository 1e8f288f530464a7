"""The event log: an event that cannot be written is reported without its contents and
does not end the thread.
"""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

from backends.telemetry.event_log import MAX_FILES, FileEventLog

ROOT = Path(__file__).parents[2]
CHILD = """
import sys
import time
from pathlib import Path
from backends.telemetry.event_log import FileEventLog

log = FileEventLog(Path(sys.argv[1]), "test")
log.emit("first")
while not (Path(sys.argv[1]).exists() and Path(sys.argv[1]).stat().st_size):
    time.sleep(0.01)
print("written", flush=True)
sys.stdin.readline()
log.emit("last")
log.close()
"""


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
    assert [json.loads(line)["event"] for line in file.read_text().splitlines()] == [
        "second",
        "third",
    ]
    assert "first could not be written: TypeError" in caplog.text
    assert "a listener of the event log failed: ValueError" in caplog.text
    assert "таємне" not in caplog.text


def test_the_oldest_files_go_and_never_those_of_a_process_that_lives(tmp_path):
    """The child writes once and then nothing for long, as a quiet service does: its files become
    the oldest.
    """
    living = tmp_path / "quiet-1.jsonl"
    command = [sys.executable, "-c", CHILD, str(living)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as child:
        assert child.stdout.readline() == "written\n"
        rotated = tmp_path / "quiet-1.jsonl.1"
        rotated.write_text("{}\n")
        dead = [tmp_path / f"busy-{number}.jsonl" for number in range(MAX_FILES)]
        for age, file in enumerate([living, rotated, *dead]):
            file.touch()
            os.utime(file, (age, age))
        FileEventLog(tmp_path / "new-1.jsonl", "test").close()
        assert sorted(file.name for file in tmp_path.glob("*.jsonl*")) == sorted(
            file.name for file in [living, rotated, *dead[2:]]
        )
        child.communicate("\n")
    assert [json.loads(line)["event"] for line in living.read_text().splitlines()] == [
        "first",
        "last",
    ]
    FileEventLog(tmp_path / "new-2.jsonl", "test").close()
    (tmp_path / "one-more.jsonl").touch()
    os.utime(living, (0, 0))
    FileEventLog(tmp_path / "new-3.jsonl", "test").close()
    assert not living.exists()
