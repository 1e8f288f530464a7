"""Builds the request to finish an answer that broke off at another model. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from contracts.llm.messages import ChatMessage
from contracts.llm.requests import ChatOptions
from contracts.llm.routing import Continuation

INSTRUCTION = (
    "The connection broke while you were answering; the text above is what arrived. Go on exactly "
    "where it ends, beginning with the very next character, and write the rest only: "
    "no repetition, no introduction, no remark about the break."
)
_VLLM_FIELDS = {"continue_final_message": True, "add_generation_prompt": False}


def continued(
    dialect: Continuation, messages: Sequence[ChatMessage], text: str, options: ChatOptions
) -> tuple[list[ChatMessage], ChatOptions] | None:
    """Returns messages and options that ask for the rest of an answer of which `text` arrived.

    Returns None for the dialect `none`. `vllm` and `deepseek` continue the same message; `instruct`
    asks in words, and the model may stray.
    """
    if dialect == "none":
        return None
    begun: dict[str, Any] = {"role": "assistant", "content": text}
    if dialect == "deepseek":
        begun["prefix"] = True
    asked = [*messages, cast("ChatMessage", begun)]
    if dialect == "instruct":
        asked.append({"role": "user", "content": INSTRUCTION})
    if dialect != "vllm":
        return asked, options
    return asked, {**options, "extra_body": {**options.get("extra_body", {}), **_VLLM_FIELDS}}
