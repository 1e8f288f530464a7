"""The bare engine behind HTTP: an application that passes a body to the engine's handle and its
chunks back, unread.

It runs in the same graph, behind the same ingress and under the same options as the proxy: what
remains between the two is the proxy's own work. Serve inspects `build`'s annotations, so this
module must not postpone them.
"""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.deployment import Application

DEPLOYMENT = "Bare"
HEADERS = [(b"content-type", b"text/event-stream")]


class BareArgs(BaseModel):
    """Takes nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@serve.ingress()
class Bare:
    """The ingress."""

    def __serve_build_asgi_app__(self) -> Any:  # Serve's hook
        return passed_on


async def passed_on(scope: Any, receive: Any, send: Any) -> None:
    """Streams one answer; a GET is answered at once."""
    if scope["type"] != "http":
        await _lifespan(receive, send)
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body")
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    if body:
        engine = serve.get_deployment_handle("LocalLLM", app_name="engines")
        chunks = engine.options(stream=True).chat_stream_dict.remote(json.loads(body))
        async for chunk in chunks:
            event = b"data: " + chunk.encode() + b"\n\n"
            await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _lifespan(receive: Any, send: Any) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


def build(args: BareArgs) -> Application:
    """Returns the application's graph."""
    del args
    return serve.deployment(Bare, name=DEPLOYMENT).bind()
