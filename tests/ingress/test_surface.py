"""The OpenAPI page names every route of the contract."""

from __future__ import annotations

import pytest

from interfaces.http.graph.openapi import build_openapi

PREFIXES = {
    "llm": "/internal/llm",
    "memory": "/internal/agent-memory",
    "tools": "/internal/tools",
    "agents": "/internal/agent-runtime",
    "workspace": "/internal/messaging",
}
CONTRACT = """
POST /internal/llm/proxy
POST /internal/llm/stream
POST /internal/llm/batch
GET /internal/llm/batch/{}
GET /internal/llm/batch/{}/items
DELETE /internal/llm/batch/{}
GET /internal/llm/models
GET /internal/llm/usage
GET /internal/llm/limits
POST /internal/llm/v1/chat/completions
POST /internal/llm/v1/embeddings
GET /internal/llm/v1/models
GET /internal/llm/health
POST /internal/agent-memory/query
POST /internal/agent-memory/store
POST /internal/agent-memory/summarize
GET /internal/agent-memory/items
DELETE /internal/agent-memory/items/{}
GET /internal/agent-memory/stats
POST /internal/agent-memory/mcp
POST /internal/agent-memory/erase
GET /internal/agent-memory/export
POST /internal/agent-memory/import
POST /internal/agent-memory/kb/reindex
PUT /internal/agent-memory/documents
GET /internal/agent-memory/documents
DELETE /internal/agent-memory/documents
GET /internal/agent-memory/health
GET /internal/tools
GET /internal/tools/{}
POST /internal/tools/call
GET /internal/tools/calls
GET /internal/tools/results/{}
PUT /internal/tools/{}
DELETE /internal/tools/{}
POST /internal/tools/mcp
GET /internal/tools/health
POST /internal/agent-runtime/invocations
GET /internal/agent-runtime/agents
GET /internal/agent-runtime/runs/{}
GET /internal/agent-runtime/health
POST /internal/messaging/channels
GET /internal/messaging/channels
POST /internal/messaging/channels/{}/messages
GET /internal/messaging/channels/{}/messages
GET /internal/messaging/channels/{}/events
POST /internal/messaging/agents/{}/post-to-channel
POST /internal/messaging/projects
GET /internal/messaging/projects
GET /internal/messaging/health
GET /health
GET /health/live
GET /openapi.json
GET /docs
"""


@pytest.fixture(scope="module")
def documented() -> set[str]:
    paths = build_openapi(PREFIXES)["paths"]
    return {
        f"{method.upper()} {_nameless(path)}"
        for path, operations in paths.items()
        for method in operations
    }


@pytest.mark.parametrize("route", CONTRACT.split("\n")[1:-1])
def test_the_page_names_each_route_of_the_contract(documented, route):
    assert route in documented


def _nameless(path: str) -> str:
    return "/".join("{}" if part.startswith("{") else part for part in path.split("/"))


@pytest.mark.parametrize(
    ("route", "name", "other"), [("query", "kinds", "kind_filter"), ("store", "meta", "metadata")]
)
def test_other_names_of_memorys_fields_are_documented(route, name, other):
    document = build_openapi(PREFIXES)
    operation = document["paths"][f"/internal/agent-memory/{route}"]["post"]
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    body = document["components"]["schemas"][reference.rpartition("/")[2]]
    assert body["properties"][other]["description"] == f"Another name of `{name}`."
    assert {**body["properties"][other], "title": "", "description": ""} == {
        **body["properties"][name],
        "title": "",
        "description": "",
    }
