"""From a caller's chat completion body to the one the engine gets. Pure."""

from __future__ import annotations

from typing import Any

from configs.engines.config import SamplingSettings, StructuredSettings
from contracts.errors import InvalidRequest
from deployments.engines.schemas import bound_schema, refuse_widened

# Fields that a caller may send. The rest of vLLM's dialect (templates, token ids, transfer
# parameters, beams, several answers) would let one caller slow down others or change the engine.
ALLOWED = frozenset({
    "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p",
    "stop", "seed", "tools", "tool_choice", "parallel_tool_calls", "response_format",
    "chat_template_kwargs", "frequency_penalty", "presence_penalty", "repetition_penalty",
    "logit_bias", "reasoning_effort", "stream", "stream_options", "continue_final_message",
    "add_generation_prompt",
})  # fmt: skip

LEAST_TOP_P = 1e-6
"""Stands for a `top_p` of 0, the likeliest token alone, which vLLM refuses."""


def engine_request(
    body: dict[str, Any],
    *,
    served_name: str,
    sampling: SamplingSettings,
    structured: StructuredSettings,
    stream: bool,
) -> dict[str, Any]:
    """Returns the body for vLLM: known fields, no nulls, defaults filled in, schemas bounded.

    Unknown fields are dropped, as OpenAI-compatible servers do. `model` becomes the served name.

    Raises:
        InvalidRequest: no messages, malformed tools or `response_format`, or a schema that
            `bound_schema` or `refuse_widened` refuses.
    """
    request = {key: value for key, value in body.items() if key in ALLOWED and value is not None}
    if not isinstance(request.get("messages"), list) or not request["messages"]:
        raise InvalidRequest("`messages` must be a list of at least one message")
    request["model"] = served_name
    request["stream"] = stream
    if stream:
        request["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    else:
        request.pop("stream_options", None)
    if not request.get("tools"):
        _drop_tool_fields(request)
    if request.get("top_p") == 0:
        request["top_p"] = LEAST_TOP_P
    _bound_schemas(request, structured)
    _fill_sampling(request, sampling, structured)
    return request


def _drop_tool_fields(request: dict[str, Any]) -> None:
    """Drops `none` and `auto`, which mean nothing without tools; vLLM refuses other choices."""
    request.pop("tools", None)
    request.pop("parallel_tool_calls", None)
    if request.get("tool_choice") in ("none", "auto"):
        del request["tool_choice"]


def _bound_schemas(request: dict[str, Any], bounds: StructuredSettings) -> None:
    if "response_format" in request:
        request["response_format"] = _bounded_format(request["response_format"], bounds)
    if "tools" in request:
        if not isinstance(request["tools"], list):
            raise InvalidRequest("`tools` must be a list")
        tools = [_bounded_tool(tool, index, bounds) for index, tool in enumerate(request["tools"])]
        for tool in tools:
            if _is_forced(tool, request.get("tool_choice")):
                refuse_widened(tool["function"]["parameters"])
        request["tools"] = tools


def _bounded_format(wanted: Any, bounds: StructuredSettings) -> dict[str, Any]:
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind in ("text", "json_object"):
        return {"type": kind}
    if kind != "json_schema":
        raise InvalidRequest("`response_format.type` must be text, json_object or json_schema")
    holder = wanted.get("json_schema")
    schema = holder.get("schema") if isinstance(holder, dict) else None
    if not isinstance(schema, dict):
        raise InvalidRequest("`response_format.json_schema.schema` must be a JSON schema")
    bounded = bound_schema(schema, bounds)
    refuse_widened(schema)
    return {"type": kind, "json_schema": {"name": "answer", **holder, "schema": bounded}}


def _bounded_tool(tool: Any, index: int, bounds: StructuredSettings) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f"`tools[{index}]` must be a function with a name")
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    return {**tool, "function": {**function, "parameters": bound_schema(parameters, bounds)}}


def _is_forced(tool: dict[str, Any], choice: Any) -> bool:
    """Whether a grammar constrains this tool's arguments; it does not for optional calls."""
    if isinstance(choice, dict):
        function = choice.get("function")
        return isinstance(function, dict) and function.get("name") == tool["function"]["name"]
    return bool(choice == "required")


def is_structured(request: dict[str, Any]) -> bool:
    """Whether a grammar will constrain the answer."""
    wanted = request.get("response_format")
    if isinstance(wanted, dict) and wanted.get("type") in {"json_schema", "json_object"}:
        return True
    return request.get("tool_choice") == "required" or isinstance(request.get("tool_choice"), dict)


def _fill_sampling(
    request: dict[str, Any], sampling: SamplingSettings, structured: StructuredSettings
) -> None:
    defaults = sampling.model_dump(exclude_none=True)
    if "max_completion_tokens" in request:
        defaults.pop("max_tokens", None)
    if structured.repetition_penalty is not None and is_structured(request):
        defaults["repetition_penalty"] = structured.repetition_penalty
    for key, value in defaults.items():
        request.setdefault(key, value)
