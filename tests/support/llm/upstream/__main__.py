"""`python -m tests.support.llm.upstream --port 0` runs the scripted upstream.

It prints its base URL and stops on SIGTERM or Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import signal

from tests.support.llm.upstream.server import ScriptedUpstream


async def run(port: int) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with ScriptedUpstream(port) as upstream:
        print(upstream.base_url, flush=True)
        await stopped.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    asyncio.run(run(parser.parse_args().port))
