"""Prices of calls: by the configuration, by the price library, or unknown."""

from decimal import Decimal

import pytest

from configs.llm.config import LLMSettings
from contracts.llm.answers import TokenUsage
from contracts.llm.routing import Target, Timeouts
from providers import prices
from providers.prices import PriceBook

TIMEOUTS = Timeouts(1, 1, 1, 1)
CONFIG = {
    "providers": {
        "openai": {"base_url": "https://api.openai.com/v1"},
        "deepseek": {"base_url": "https://api.deepseek.com/v1"},
        "google": {"base_url": "https://generativelanguage.googleapis.com/v1beta/openai"},
        "house": {"base_url": "http://127.0.0.1:9/v1"},
        "local": {"type": "local"},
    },
    "models": {
        "gpt": {"provider": "openai", "name": "gpt-4.1-mini"},
        "own": {"provider": "house", "name": "gpt-4.1-mini"},
        "here": {"provider": "local", "name": "tiny"},
    },
}


def book(**own):
    return PriceBook(LLMSettings.model_validate({**CONFIG, "prices": own}))


def cost(book, provider, name, prompt=0, completion=0, cached=None):
    usage = TokenUsage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        cached_tokens=cached,
    )
    return book.cost(Target(provider, name, TIMEOUTS), usage)


@pytest.mark.parametrize("name", ["gpt-4.1-mini", "gpt-4", "gpt-4o"])
@pytest.mark.parametrize(
    ("prompt", "completion", "cached"),
    [(1000, 100, 0), (1_000_000, 0, 0), (7, 3, 5), (0, 0, 0), (300_000, 1, 299_999)],
)
def test_prices_equal_the_librarys(name, prompt, completion, cached):
    from_library = prices._library_cost(
        name, "https://api.openai.com/v1", prompt, cached, completion
    )
    assert abs(cost(book(), "openai", name, prompt, completion, cached) - from_library) <= Decimal(
        "1e-9"
    )


def test_a_price_that_depends_on_the_size_of_the_call_is_followed():
    small = cost(book(), "google", "gemini-2.5-pro", 1_000)
    large = cost(book(), "google", "gemini-2.5-pro", 1_000_000)
    assert large > small * 1_000
    assert large == prices._library_cost(
        "gemini-2.5-pro", CONFIG["providers"]["google"]["base_url"], 1_000_000, 0, 0
    )


@pytest.mark.parametrize(
    ("provider", "name"),
    [
        ("openai", "no-such-model-anywhere"),
        ("house", "gpt-4.1-mini"),
        ("local", "tiny"),
        ("gone", "gpt-4.1-mini"),
    ],
)
def test_an_unknown_price_is_none_and_never_zero(provider, name):
    assert cost(book(), provider, name, 1_000, 1_000) is None


def test_the_configuration_wins_by_logical_model_or_by_provider_and_name():
    own = book(
        **{
            "gpt": {"input": 1, "output": 10, "cached_input": "0.5"},
            "house/gpt-4.1-mini": {"input": "0.001", "output": 0},
        }
    )
    assert cost(own, "openai", "gpt-4.1-mini", 1_000_000, 100_000, 400_000) == Decimal(
        "0.6"
    ) + Decimal("0.2") + Decimal(1)
    assert cost(own, "house", "gpt-4.1-mini", 1, 5) == Decimal("1e-9")
    assert cost(own, "openai", "gpt-4", 1_000) > 0
    assert cost(book(here={"input": 0, "output": 0}), "local", "tiny", 1_000) == 0


def test_cached_tokens_without_a_price_cost_as_others_and_are_at_most_the_prompt():
    own = book(gpt={"input": 1, "output": 1})
    assert cost(own, "openai", "gpt-4.1-mini", 10, 0, 10) == cost(own, "openai", "gpt-4.1-mini", 10)
    cheap = book(gpt={"input": 1, "output": 1, "cached_input": 0})
    assert cost(cheap, "openai", "gpt-4.1-mini", 10, 0, 99) == 0


def test_a_price_for_nothing_in_the_file_is_refused():
    with pytest.raises(ValueError, match="neither a model"):
        book(typo={"input": 1, "output": 1})


def test_prices_are_refreshed():
    now = [0.0]
    watched = PriceBook(LLMSettings.model_validate(CONFIG), clock=lambda: now[0])
    watched.warm()
    assert ("openai", "gpt-4.1-mini") in watched._known
    now[0] = prices.REFRESH_S + 1
    cost(watched, "openai", "gpt-4", 1)
    assert set(watched._known) == {("openai", "gpt-4")}
