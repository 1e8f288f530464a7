"""A stand-in for the Serve graph: has a daemon in a session of its own, answers `/health`.

Usage: stand_in.py <journal file> [--crash | --refuse | --deaf]
"""

import json
import os
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

journal, mode = Path(sys.argv[1]), (sys.argv[2:] or [""])[0]


def note(**entry):
    with journal.open("a") as file:
        file.write(json.dumps(entry) + "\n")


class Health(BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self):
        Health.asked += 1
        ready = Health.asked > 2
        state = (
            {"state": "ready"}
            if ready
            else {"state": "starting", "age_s": 1, "reason": "loading weights"}
        )
        body = json.dumps({"status": state["state"], "checks": {"local_llm": state}}).encode()
        self.send_response(200 if ready else 503)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


# Like Ray's daemons it outlives its parent.
daemon = subprocess.Popen(
    [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True
)
note(
    event="start",
    pid=os.getpid(),
    daemon=daemon.pid,
    database=os.environ["DATABASE_URL"],
    nats=os.environ["NATS_URL"],
    directory=str(Path(os.environ["DAARION_RAY_TEMP_DIR"]).parent),
)
if mode == "--crash":
    print("the stand-in broke", flush=True)
    sys.exit(1)
if mode == "--refuse":
    print("llm.yaml: models: no such provider", flush=True)
    sys.exit(2)


def stop(*_):
    state = json.loads((Path(os.environ["DAARION_DATA_DIR"]) / "run/state.json").read_text())
    stores = [part["pid"] for part in state["parts"] if part["name"] != "Serve"]
    note(event="stop", stores_alive=[Path(f"/proc/{pid}").exists() for pid in stores])
    os._exit(0)


def reload(*_):
    note(event="reload")
    print("2026-01-01 00:00:00,000 daarion.serve_graph: reloaded", flush=True)


signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "--deaf" else stop)
signal.signal(signal.SIGHUP, reload)
HTTPServer(("127.0.0.1", int(os.environ["DAARION_PORT"])), Health).serve_forever()
