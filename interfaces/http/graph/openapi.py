"""One OpenAPI document for the whole surface, merged from the applications' routers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from fastapi.openapi.utils import get_openapi

from interfaces.http.base.routing import ERROR

_IN_PATH = re.compile(r"\{(\w+)\}")
_OPENAI = {"$ref": "#/components/responses/OpenAIError"}
TITLE = "daarion-serve"
VERSION = "0.1.0"


def _error_answer(description: str, required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """Describes a body `{"error": {…}}`; `required` and `optional` are the schemas of its fields."""
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
# The ingress refuses these on every route: credentials, a page of another origin, a host, a full replica.
_REFUSED_ANYWHERE = ("401", "403", "421", "503")
# Bodies that are wrong, too slow, too large, or not sent as JSON.
_REFUSED_BODIES = ("400", "408", "413", "415")
_SECURITY = {
    "InternalSecret": {"type": "apiKey", "in": "header", "name": "X-Internal-Secret"},
    "Bearer": {"type": "http", "scheme": "bearer"},
}


def build_openapi(applications: Mapping[str, tuple[str, APIRouter]]) -> dict[str, Any]:
    """Returns the document; `applications` maps a tag to its prefix and router."""
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {}
    for tag, (prefix, router) in applications.items():
        part = get_openapi(title=TITLE, version=VERSION, routes=router.routes)
        for path, operations in part.get("paths", {}).items():
            full = (prefix.rstrip("/") + path).rstrip("/") or "/"
            paths[full] = {
                method: _operation(operation, tag, method, full)
                for method, operation in operations.items()
            }
        schemas.update(part.get("components", {}).get("schemas", {}))
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": TITLE,
            "version": VERSION,
            "description": "LLM proxy, agent memory, tools and agents behind one ingress.",
        },
        "paths": paths,
        "security": [{"InternalSecret": []}, {"Bearer": []}, {}],
    }
    schemas.update(_hoisted(document))
    responses = {"Error": _ERROR, "OpenAIError": _OPENAI_ERROR}
    document["components"] = {
        "schemas": schemas,
        "responses": responses,
        "securitySchemes": _SECURITY,
    }
    return document


def _operation(operation: dict[str, Any], tag: str, method: str, path: str) -> dict[str, Any]:
    operation_id = "_".join(
        part for part in (method, *path.replace("{", "").replace("}", "").split("/")) if part
    )
    named = {
        **operation,
        "tags": [tag],
        "operationId": operation_id.replace("-", "_").replace(".", "_"),
    }
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in _IN_PATH.findall(path)
    ]
    if in_path:
        named["parameters"] = [*in_path, *operation.get("parameters", [])]
    if not path.startswith("/internal/") or path.endswith(("/health", "/health/live")):
        return {**named, "security": [{}]}
    shared = _REFUSED_ANYWHERE + (_REFUSED_BODIES if "requestBody" in operation else ())
    responses = dict.fromkeys(shared, ERROR)
    for status, answer in operation["responses"].items():
        responses[status] = (
            _either(answer) if status in responses and "$ref" not in answer else answer
        )
    if "/v1/" in path:
        responses = {
            status: _OPENAI if answer.get("$ref") == ERROR["$ref"] else answer
            for status, answer in responses.items()
        }
    return {**named, "responses": responses}


def _either(answer: dict[str, Any]) -> dict[str, Any]:
    """A status that the route answers in a shape of its own, and the ingress in the envelope."""
    bodies: tuple[dict[str, Any], ...] = (answer, _ERROR)
    schemas = [body["content"]["application/json"].get("schema", {}) for body in bodies]
    return {**answer, "content": {"application/json": {"schema": {"anyOf": schemas}}}}


def _hoisted(node: Any) -> dict[str, Any]:
    """Takes `$defs` out of inlined schemas, wherever they stand, and returns them."""
    found: dict[str, Any] = {}
    if isinstance(node, dict):
        found.update(node.pop("$defs", {}))
        for value in (*node.values(), *list(found.values())):
            found.update(_hoisted(value))
    elif isinstance(node, list):
        for value in node:
            found.update(_hoisted(value))
    return found
