"""Texts of several lines for the operator: URLs and a first request."""

from __future__ import annotations

from configs.environment import Environment
from launcher.datadir import DataDir

_QUESTION = (
    '{"model":"dagi-local-8b",'
    '"messages":[{"role":"user","content":"What is the capital of France?"}],'
    '"temperature":0,"metadata":{"agent_id":"agent:sofia","microdao_id":"microdao:7"}}'
)
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # recognised here, not bound


def base_url(environment: Environment) -> str:
    """Returns the ingress as seen from this machine."""
    host = _EVERYWHERE.get(environment.host, environment.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{environment.port}"


def graph_ready(environment: Environment) -> str:
    """Returns the URLs and a first request to try."""
    url = base_url(environment)
    variable = "DAARION_INTERNAL_SECRET" if environment.internal_secret else "DAARION_ADMIN_SECRET"
    secret = f'-H "X-Internal-Secret: ${variable}" ' if environment.has_secret else ""
    return (
        f"  {url}/        every application behind one port\n"
        f"  {url}/docs    every route\n"
        f"  {url}/health  the state of every part\n"
        "  try it:\n"
        f"    curl -s {url}/internal/llm/proxy -H 'content-type: application/json' {secret}\\\n"
        f"      -d '{_QUESTION}'\n"
        "  Ctrl-C stops everything."
    )


def stores_ready(data_dir: DataDir) -> str:
    """Returns what `make services` shows."""
    return (
        f"  The stores are up; their URLs are in {data_dir.services}, where the graph finds them:\n"
        '    eval "$(.venv/bin/python -m deployments.graph.serve_variables)"\n'
        "    .venv/bin/serve run serve_config.yaml\n"
        "  Ctrl-C stops the stores."
    )
