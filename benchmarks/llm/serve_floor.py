"""Serve's own floor: an application that reads a body and sends a canned answer.

It runs in the same graph, behind the same ingress and under the same options as the proxy. Serve
inspects `build`'s annotations, so this module must not postpone them.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.deployment import Application

DEPLOYMENT = "Floor"
ANSWER = b'{"ok":true}'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]


class FloorArgs(BaseModel):
    """Takes nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)


async def noop(scope: Any, receive: Any, send: Any) -> None:
    """Reads the request and answers; bare ASGI, because a framework would lower the floor."""
    if scope["type"] != "http":
        await _lifespan(receive, send)
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": ANSWER})


async def _lifespan(receive: Any, send: Any) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


@serve.ingress()
class Floor:
    """The ingress."""

    def __serve_build_asgi_app__(self) -> Any:  # Serve's hook
        return noop


def build(args: FloorArgs) -> Application:
    """Returns the application's graph."""
    del args
    return serve.deployment(Floor, name=DEPLOYMENT).bind()
