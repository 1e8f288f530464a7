#!/bin/sh
# 0 when GET /health answers 200: every required part is ready.
exec python3 -c '
import os, sys, urllib.request
url = "http://127.0.0.1:%s/health" % os.environ.get("DAARION_PORT", "8000")
try:
    sys.exit(urllib.request.urlopen(url, timeout=8).status != 200)
except OSError:
    sys.exit(1)
'
