"""Builds prompts: instructions, rules, context, the question, and the steps so far. Pure.

Each step renders the prompt anew from its parts, so that it can shrink when the model's context
turns out to be too small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from contracts.agents.blueprints import Blueprint
from contracts.llm.answers import ProxyResponse
from contracts.llm.messages import NO_ARGUMENTS, ToolCall, ToolSpec
from contracts.memory.api import Item
from contracts.tools.api import ToolDefinition, plain_name
from contracts.workspace.messaging_service import ChannelMessage
from services.agents.context import Context, window
from services.agents.texts import clean, cut, cut_to_tokens
from services.agents.tool_calls import Reading, WantedCall
from services.agents.untrusted_text import rule, sealed, sealed_schema

MEMORY_SHARE = 0.4
"""Share of the context tokens that memory may take; the channel gets the rest."""
QUESTION_FACTOR = 2
"""The question may take this many times the context tokens, because the run is about it."""
MIN_QUESTION_TOKENS = 200
SHORT_RESULT_CHARS = 200
TENANT_ARGUMENT = "microdao_id"

JSON_FORM = '{"tool": "<tool id>", "args": {…}}'
LINE_FORM = "TOOL: <tool id> {…}"
HOW_TO_CALL = {
    "json": f"To use a tool answer with one JSON object and nothing else: {JSON_FORM}. "
    "To answer the person, write plain text.",
    "text": f"To use a tool answer with a line `{LINE_FORM}` (the arguments as one JSON object) "
    "and nothing else. To answer the person, write plain text.",
}
RESULTS_FOLLOW = "Results of your tool calls, in their order:"
ANSWER_NOW = "Answer the person now, in plain text, from what you know. No more tools can be used."
WAS_CUT = "Your last message was cut off because it was too long. Answer again, more briefly."
WAS_EMPTY = "Your last message was empty. Answer the person."
NO_TOOLS = (
    "No tool can be reached right now. If the answer needs one, say so plainly instead of guessing."
)


@dataclass
class Dialogue:
    """The run's conversation with its model. `tools_away`: Toolcore could not be reached."""

    blueprint: Blueprint
    nonce: str
    context: Context
    tools: Sequence[ToolDefinition]
    addition: str | None = None
    tools_away: bool = False
    turns: list[Mapping[str, Any]] = field(default_factory=list)
    scale: float = 1.0

    def messages(self, *, final: bool) -> list[Mapping[str, Any]]:
        """Returns the messages of the next step; the `final` step asks for an answer."""
        found: list[Mapping[str, Any]] = [{"role": "system", "content": self._system(final=final)}]
        if background := self._background():
            found.append({"role": "user", "content": background})
        found.append({"role": "user", "content": self._question()})
        found += [self._fitting(turn) for turn in self.turns]
        if final and self.turns:
            found.append({"role": "user", "content": ANSWER_NOW})
        return found

    def specs(self) -> list[ToolSpec]:
        """Returns the tools in the format of chat completions."""
        return [
            {
                "type": "function",
                "function": {
                    "name": plain_name(tool.id),
                    "description": self._described(tool, tool.description or tool.name),
                    "parameters": sealed_schema(_offered(tool), self.nonce, _source(tool))
                    if tool.outside
                    else _offered(tool),
                },
            }
            for tool in self.tools
        ]

    def shrink(self) -> None:
        """Halves the room for context and results in the prompts that follow."""
        self.scale /= 2

    def add_remark(self, answer: ProxyResponse, reading: Reading) -> None:
        """Adds an answer that cannot be used, and tells the model why."""
        if answer.content.strip():
            self.turns.append(assistant_message(clean(answer.content)))
        remark = WAS_CUT if reading.was_cut else WAS_EMPTY
        self.turns.append({"role": "user", "content": remark})

    def add_results(
        self, answer: ProxyResponse, reading: Reading, results: Sequence[tuple[str, str]]
    ) -> None:
        """Adds the model's turn and one result per call, as (source, text) in the calls' order."""
        if not reading.native:
            self.turns.append(assistant_message(clean(answer.content)))
            self.turns.append(results_message(results))
            return
        pairs = zip(reading.calls, answer.tool_calls or [], strict=False)
        calls = [_as_sent(place, call, given) for place, (call, given) in enumerate(pairs)]
        if len({call["id"] for call in calls}) < len(calls):  # a model may repeat an id
            calls = [{**call, "id": f"call_{place}"} for place, call in enumerate(calls)]
        self.turns.append(assistant_message(clean(answer.content), calls))
        for call, (source, text) in zip(calls, results, strict=True):
            self.turns.append(tool_message(call["id"], source, text))

    def _system(self, *, final: bool) -> str:
        blueprint = self.blueprint
        parts = [blueprint.instructions]
        if self.addition:
            parts.append(self.addition)
        if self._has_data():
            parts.append(rule(self.nonce))
        if self.tools and not final and blueprint.tool_mode != "native":
            parts.append(self._tool_list())
        if self.tools_away and blueprint.tools:
            parts.append(NO_TOOLS)
        return "\n\n".join(parts)

    def _has_data(self) -> bool:
        return bool(self.context.memories or self.context.earlier or self.tools)

    def _tool_list(self) -> str:
        lines = [HOW_TO_CALL[self.blueprint.tool_mode], "Tools:"]
        for tool in self.tools:
            schema = orjson.dumps(_offered(tool)).decode()
            described = self._described(
                tool, f"{tool.description or tool.name} Arguments (JSON Schema): {schema}"
            )
            lines.append(f"- {tool.id}: {described}")
        return "\n".join(lines)

    def _described(self, tool: ToolDefinition, text: str) -> str:
        """A tool's description; that of an outside (MCP) tool in a data block."""
        return sealed(text, self.nonce, _source(tool)) if tool.outside else text

    def _background(self) -> str:
        budget = int(self.blueprint.limits.context_tokens * self.scale)
        recalled = _memory_text(self.context.memories, int(budget * MEMORY_SHARE))
        earlier = _channel_text(
            window(
                self.context.earlier,
                int(budget * (1 - MEMORY_SHARE)) if recalled else budget,
            )
        )
        parts = []
        if recalled:
            parts.append(
                "What you remember from before:\n" + sealed(recalled, self.nonce, "memory")
            )
        if earlier:
            parts.append("The conversation so far:\n" + sealed(earlier, self.nonce, "channel"))
        return "\n\n".join(parts)

    def _question(self) -> str:
        tokens = max(
            MIN_QUESTION_TOKENS,
            int(self.blueprint.limits.context_tokens * QUESTION_FACTOR * self.scale),
        )
        return cut_to_tokens(self.context.question.text, tokens)

    def _fitting(self, turn: Mapping[str, Any]) -> Mapping[str, Any]:
        """A turn as it is sent; results under `data` are cut and put in data blocks here."""
        if "data" not in turn:
            return turn
        chars = max(SHORT_RESULT_CHARS, int(self.blueprint.limits.result_chars * self.scale))
        shown = [sealed(cut(text, chars), self.nonce, source) for source, text in turn["data"]]
        message = {key: value for key, value in turn.items() if key not in {"data", "lead"}}
        return {**message, "content": "\n".join([*turn.get("lead", ()), *shown])}


def tool_message(call_id: str, source: str, text: str) -> dict[str, Any]:
    """Returns the turn with the result of a native call; `_fitting` adds the data block."""
    return {"role": "tool", "tool_call_id": call_id, "data": [(source, text)]}


def results_message(results: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Returns the turn with (source, text) results of calls that were written as text."""
    return {"role": "user", "lead": [RESULTS_FOLLOW], "data": list(results)}


def assistant_message(
    content: str, tool_calls: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Returns the model's turn."""
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if tool_calls:
        message["tool_calls"] = [dict(call) for call in tool_calls]
    return message


def _as_sent(place: int, call: WantedCall, given: ToolCall) -> dict[str, Any]:
    """A native call as the next prompt repeats it. Providers refuse arguments that are no JSON
    object (missing, `null`), so these become empty ones.
    """
    function = {
        "name": given["function"]["name"],
        "arguments": given["function"]["arguments"] if call.args else NO_ARGUMENTS,
    }
    return {"id": given["id"] or f"call_{place}", "type": "function", "function": function}


def _source(tool: ToolDefinition) -> str:
    return f"description of {tool.id}"


def _offered(tool: ToolDefinition) -> dict[str, Any]:
    """A tool's schema without the tenant argument, which the model may not choose."""
    schema = dict(tool.input_schema)
    properties, required = schema.get("properties"), schema.get("required")
    is_required = isinstance(required, list) and TENANT_ARGUMENT in required
    if isinstance(properties, dict) and TENANT_ARGUMENT in properties and not is_required:
        schema["properties"] = {
            name: value for name, value in properties.items() if name != TENANT_ARGUMENT
        }
    return schema


def _memory_text(memories: Sequence[Item], tokens: int) -> str:
    lines = []
    for item in memories:
        when = str(item.meta.get("timestamp", ""))[:10]
        lines.append(f"- ({item.kind}{', ' + when if when else ''}) {clean(item.content)}")
    return cut_to_tokens("\n".join(lines), tokens) if lines else ""


def _channel_text(messages: Sequence[ChannelMessage]) -> str:
    return "\n".join(
        f"[{message.created_at:%Y-%m-%d %H:%M}] {message.sender_id}: {clean(message.text)}"
        for message in messages
    )
