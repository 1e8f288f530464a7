"""Client generators accept the OpenAPI document, and it has every answer."""

from __future__ import annotations

import re

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from interfaces.http.graph.openapi import build_openapi
from tests.ingress.test_surface import PREFIXES


@pytest.fixture(scope="module")
def document():
    return build_openapi(PREFIXES)


def operations(document):
    return {
        f"{method.upper()} {path}": it
        for path, methods in document["paths"].items()
        for method, it in methods.items()
    }


def test_the_document_is_valid(document):
    assert [str(error) for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


def test_each_operation_describes_the_parameters_in_its_path(document):
    for name, operation in operations(document).items():
        described = {it["name"] for it in operation.get("parameters", []) if it["in"] == "path"}
        assert described == set(re.findall(r"\{(\w+)\}", name)), name


@pytest.mark.parametrize("path", ["/internal/llm/proxy", "/internal/agent-memory/store"])
def test_hot_routes_describe_the_key_that_they_read_themselves(document, path):
    described = operations(document)[f"POST {path}"]["parameters"]
    assert [(it["name"], it["in"]) for it in described] == [("Idempotency-Key", "header")]


def test_operation_ids_are_unique(document):
    ids = [operation["operationId"] for operation in operations(document).values()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("operation", "statuses"),
    [
        ("POST /internal/messaging/channels/{channel_id}/members", {"200", "201"}),
        ("POST /internal/messaging/channels/{channel_id}/messages", {"200", "201"}),
        ("POST /internal/messaging/agents/{agent_id}/post-to-channel", {"200", "201"}),
        ("POST /internal/agent-runtime/invocations", {"200", "202"}),
        ("POST /internal/tools/call", {"200", "401", "403", "404", "409", "422", "503"}),
        ("PUT /internal/tools/{tool_id}", {"200", "201"}),
        ("POST /internal/tools/mcp", {"200", "202", "400"}),
        ("GET /internal/llm/health", {"200", "503"}),
    ],
)
def test_answers_beside_the_usual_one_are_documented(document, operation, statuses):
    assert statuses <= operations(document)[operation]["responses"].keys()


def test_refusals_of_the_ingress_are_documented_on_every_route_of_a_service(document):
    for name, operation in operations(document).items():
        if "/internal/" in name and "/health" not in name:
            assert operation["responses"].keys() >= {"401", "403", "421", "503"}, name


def test_refused_tool_calls_and_openai_routes_have_their_own_shapes(document):
    found = operations(document)
    refused = found["POST /internal/tools/call"]["responses"]["422"]["content"]["application/json"][
        "schema"
    ]
    assert refused == {"$ref": "#/components/schemas/ToolCallResult"}
    for status in ("403", "503"):  # the ingress refuses a call, too, and in its own shape
        either = found["POST /internal/tools/call"]["responses"][status]["content"][
            "application/json"
        ]["schema"]["anyOf"]
        assert either[0] == refused
        assert "error" in either[1]["properties"]
    chat = found["POST /internal/llm/v1/chat/completions"]["responses"]["404"]
    assert chat["$ref"] == "#/components/responses/OpenAIError"
