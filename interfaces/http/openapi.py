"""One OpenAPI document for the whole surface, merged from the applications' routers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from fastapi.openapi.utils import get_openapi

TITLE = "daarion-serve"
VERSION = "0.1.0"

_ERROR = {
    "description": "The error envelope; `retryable` tells whether the same request can succeed later.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {
                    "error": {
                        "type": "object",
                        "required": ["type", "message", "retryable", "request_id"],
                        "properties": {
                            "type": {"type": "string"},
                            "message": {"type": "string"},
                            "retryable": {"type": "boolean"},
                            "request_id": {"type": "string"},
                            "details": {"type": "object"},
                        },
                    }
                },
            }
        }
    },
}
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
            paths[full] = {method: _operation(operation, tag, method, full) for method, operation in operations.items()}
        schemas.update(part.get("components", {}).get("schemas", {}))
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": VERSION, "description": "LLM proxy, agent memory, tools and agents behind one ingress."},
        "paths": paths,
        "security": [{"InternalSecret": []}, {"Bearer": []}, {}],
    }
    schemas.update(_hoisted(document))
    document["components"] = {"schemas": schemas, "responses": {"Error": _ERROR}, "securitySchemes": _SECURITY}
    return document


def _operation(operation: dict[str, Any], tag: str, method: str, path: str) -> dict[str, Any]:
    operation_id = "_".join(part for part in (method, *path.replace("{", "").replace("}", "").split("/")) if part)
    return {**operation, "tags": [tag], "operationId": operation_id.replace("-", "_").replace(".", "_")}


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
