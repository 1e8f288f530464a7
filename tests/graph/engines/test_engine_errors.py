"""vLLM's errors are translated without private details. Loads vLLM, starts no engine."""

import asyncio
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import (
    ContextLengthExceeded,
    EngineUnavailable,
    Internal,
    InvalidRequest,
    Overloaded,
)

pytest.importorskip("vllm")

from vllm import exceptions as foreign
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse
from vllm.renderers.params import TokenizeParams
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from deployments.engines.errors import translated, translated_response

PRIVATE = re.compile(r"/\w+/\w|https?:|0x[0-9a-f]{4}|parameter=|value=")


def every_class(root):
    yield root
    for child in root.__subclasses__():
        yield from every_class(child)


def response(message, code=400, param=None):
    return ErrorResponse(
        error=ErrorInfo(message=message, type="BadRequestError", code=code, param=param)
    )


@pytest.mark.parametrize(
    ("error", "leaf"),
    [
        (foreign.QueueOverflowError(), Overloaded),
        (foreign.MaxQueuedTokensError(), Overloaded),
        (EngineDeadError(), EngineUnavailable),
        (EngineGenerateError(), EngineUnavailable),
        (foreign.GenerationError(), EngineUnavailable),
        (
            foreign.VLLMValidationError("top_p must be in (0, 1]", parameter="top_p", value=2),
            InvalidRequest,
        ),
        (foreign.VLLMNotFoundError("no"), InvalidRequest),
        (foreign.VLLMUnprocessableEntityError("no"), InvalidRequest),
        (ValueError("no"), InvalidRequest),
        (KeyError("name"), Internal),
        (RuntimeError("no"), Internal),
    ],
    ids=lambda it: getattr(it, "__name__", type(it).__name__),
)
def test_each_failure_has_its_leaf(error, leaf):
    found = translated(error, structured=False)
    assert type(found) is leaf
    assert pickle.loads(pickle.dumps(found)).message == found.message


def test_every_error_class_of_vllm_is_mapped():
    for cls in every_class(foreign.VLLMError):
        error = cls.__new__(cls)
        Exception.__init__(error, "no")
        error.message, error.parameter, error.value = "no", None, None
        assert type(translated(error, structured=False)) is not Internal, cls.__name__


def test_a_schema_that_cannot_be_compiled_is_the_callers_mistake():
    assert type(translated(foreign.GenerationError(), structured=True)) is InvalidRequest
    assert (
        type(translated_response(response("Internal server error", 500), structured=True))
        is InvalidRequest
    )
    assert (
        type(translated_response(response("Internal server error", 500), structured=False))
        is EngineUnavailable
    )


def chat_tokens(asked):
    """As vLLM makes them for a chat completion."""
    return TokenizeParams(
        max_total_tokens=100,
        max_output_tokens=asked,
        max_total_tokens_param="max_model_len",
        max_output_tokens_param="max_tokens",
    )


def too_long(tokens, asked):
    with pytest.raises(foreign.VLLMValidationError) as caught:
        chat_tokens(asked).apply_post_tokenization(None, {"prompt_token_ids": list(range(tokens))})
    return translated(caught.value, structured=False)


def test_too_long_says_the_numbers():
    found = too_long(tokens=95, asked=20)
    assert type(found) is ContextLengthExceeded
    assert found.details["max_context_tokens"] == 100
    assert found.details["requested_tokens"] == 20
    assert found.details["prompt_tokens"] >= 80
    assert "shorten" in found.message


def test_asking_for_more_than_the_context_says_the_numbers():
    with pytest.raises(foreign.VLLMValidationError) as caught:
        chat_tokens(500)
    found = translated(caught.value, structured=False)
    assert type(found) is ContextLengthExceeded
    assert found.details == {"max_context_tokens": 100, "requested_tokens": 500}


def test_a_wrong_type_names_the_field():
    try:
        ChatCompletionRequest.model_validate(
            {"messages": [{"role": "user", "content": "x"}], "temperature": "hot"}
        )
    except ValueError as error:
        found = translated(error, structured=False)
    assert type(found) is InvalidRequest
    assert "temperature: " in found.message


def test_a_disconnected_client_is_raised_as_a_cancellation():
    with pytest.raises(asyncio.CancelledError):
        translated_response(response("Client disconnected"), structured=False)


@pytest.mark.parametrize(
    "message",
    [
        "cannot read /home/someone/models/x.safetensors now",
        "<object at 0x7f0011223344> is bad",
        "fetch of https://user:secret@host/path failed",
        "[11:37:31] /build/xgrammar/cpp/converter.cc:4944: Unsupported type",
        "top_p must be in (0, 1], got 2.0. (parameter=top_p, value=2.0)",
        "first line\nTraceback (most recent call last):\n  File x",
    ],
)
def test_messages_hold_nothing_private(message):
    for found in (
        translated(ValueError(message), structured=False),
        translated_response(response(message), structured=False),
    ):
        assert not PRIVATE.search(found.message)
        assert "\n" not in found.message
        assert found.message


@given(st.text(max_size=2_000))
def test_any_message_becomes_one_short_line(message):
    found = translated(ValueError(message), structured=False)
    assert found.message
    assert len(found.message) <= 400
    assert "\n" not in found.message
