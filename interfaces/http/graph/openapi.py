"""One OpenAPI document for the whole surface, from the applications' routers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from interfaces.http.base.routing import ERROR

_OPENAI = {"$ref": "#/components/responses/OpenAIError"}
TITLE = "daarion-serve"
VERSION = "0.1.0"


def _error_answer(description: str, required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """Describes a body `{"error": {…}}` by the schemas of its required and optional fields."""
    fields = {"type": "object", "required": list(required), "properties": required | optional}
    schema = {"type": "object", "required": ["error"], "properties": {"error": fields}}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_TEXT, _FLAG, _TEXT_OR_NULL = {"type": "string"}, {"type": "boolean"}, {"type": ["string", "null"]}
_ERROR = _error_answer(
    "The error envelope; `retryable` tells whether the same request can succeed later.",
    {"type": _TEXT, "message": _TEXT, "retryable": _FLAG, "request_id": _TEXT},
    details={"type": "object"},
)
_OPENAI_ERROR = _error_answer(
    "An error in OpenAI's shape.",
    {"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL},
)
# The ingress refuses these on every route: credentials, a foreign page or host, a full replica.
_REFUSED_ANYWHERE = ("401", "403", "421", "503")
# Bodies that are wrong, too slow, too large, or not sent as JSON.
_REFUSED_BODIES = ("400", "408", "413", "415")
# How FastAPI describes its own refusal of parameters and bodies; ours is a 400 in the envelope.
_FASTAPI_REFUSAL = {"$ref": "#/components/schemas/HTTPValidationError"}
_SECURITY = {
    "InternalSecret": {"type": "apiKey", "in": "header", "name": "X-Internal-Secret"},
    "Bearer": {"type": "http", "scheme": "bearer"},
}


def build_openapi(applications: Mapping[str, tuple[str, APIRouter]]) -> dict[str, Any]:
    """Returns the document; `applications` maps a tag to its prefix and router."""
    surface = APIRouter(generate_unique_id_function=_operation_id)
    for tag, (prefix, router) in applications.items():
        surface.include_router(router, prefix=prefix.rstrip("/"), tags=[tag])
    document = get_openapi(
        title=TITLE,
        version=VERSION,
        description="LLM proxy, agent memory, tools and agents behind one ingress.",
        routes=surface.routes,
    )
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _describe_refusals(operation, path)
    document["security"] = [{"InternalSecret": []}, {"Bearer": []}, {}]
    components = document["components"]
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    components["responses"] = {"Error": _ERROR, "OpenAIError": _OPENAI_ERROR}
    components["securitySchemes"] = _SECURITY
    return document


def _operation_id(route: APIRoute) -> str:
    parts = [*route.methods, *route.path_format.replace("{", "").replace("}", "").split("/")]
    named = "_".join(part for part in parts if part)
    return named.lower().replace("-", "_").replace(".", "_")


def _describe_refusals(operation: dict[str, Any], path: str) -> None:
    """Replaces FastAPI's refusal by ours, and adds what the ingress refuses on every route."""
    described = operation["responses"]
    takes_input = _schema(described.get("422", {})) == _FASTAPI_REFUSAL
    if takes_input:
        del described["422"]
    if not path.startswith("/internal/") or path.endswith(("/health", "/health/live")):
        operation["security"] = [{}]
        return
    shared = _REFUSED_ANYWHERE + (("400",) if takes_input else ())
    if "requestBody" in operation:
        shared += _REFUSED_BODIES
    responses = dict.fromkeys(shared, ERROR)
    for status, answer in described.items():
        responses[status] = (
            _either(answer) if status in responses and "$ref" not in answer else answer
        )
    if "/v1/" in path:
        responses = {
            status: _OPENAI if answer.get("$ref") == ERROR["$ref"] else answer
            for status, answer in responses.items()
        }
    operation["responses"] = responses


def _either(answer: dict[str, Any]) -> dict[str, Any]:
    """Describes a status that a route answers in its own shape, the ingress in the envelope."""
    either = {"anyOf": [_schema(answer), _schema(_ERROR)]}
    return {**answer, "content": {"application/json": {"schema": either}}}


def _schema(answer: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = answer.get("content", {}).get("application/json", {}).get("schema", {})
    return found
