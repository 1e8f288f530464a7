import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.environment import REPOSITORY
from configs.llm.config import LLMSettings
from configs.yaml_files import load_yaml, parse_yaml
from contracts.errors import ConfigurationError, UnknownModel
from providers.routing import RoutingTable, route_model

NAMES = st.from_regex(r"[a-z][a-z0-9.-]{0,12}", fullmatch=True)


@st.composite
def settings(draw):
    providers = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    models = draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    seconds = st.none() | st.floats(0.1, 100)
    return LLMSettings.model_validate(
        {
            "providers": {
                name: {"base_url": "http://127.0.0.1:1/v1", "timeouts": {"total_s": draw(seconds)}}
                for name in providers
            },
            "models": {
                name: {
                    "provider": draw(st.sampled_from(providers)),
                    "name": f"physical-{name}",
                    "fallbacks": draw(
                        st.lists(
                            st.sampled_from(
                                [other for other in models if other != name] or ["none"]
                            ),
                            unique=True,
                            max_size=3,
                        )
                    )
                    if len(models) > 1
                    else [],
                    "timeouts": {"total_s": draw(seconds)},
                }
                for name in models
            },
        }
    )


@given(settings())
def test_a_route_begins_with_the_models_own_target_and_holds_each_target_once(llm):
    for name, model in llm.models.items():
        route = route_model(llm, name)
        assert (route.primary.provider, route.primary.name) == (model.provider, model.name)
        assert len(set(route.targets)) == len(route.targets)
        expected = [
            (llm.models[each].provider, llm.models[each].name) for each in (name, *model.fallbacks)
        ]
        assert [(target.provider, target.name) for target in route.targets] == list(
            dict.fromkeys(expected)
        )


@given(settings())
def test_the_nearest_timeout_wins(llm):
    for name, model in llm.models.items():
        nearest = next(
            value
            for value in (
                model.timeouts.total_s,
                llm.providers[model.provider].timeouts.total_s,
                120.0,
            )
            if value is not None
        )
        assert route_model(llm, name).primary.timeouts.total_s == nearest


@given(settings(), st.text(max_size=300))
def test_an_unknown_model_names_the_known_ones(llm, asked):
    if asked in llm.models:
        return
    with pytest.raises(UnknownModel) as caught:
        RoutingTable(llm).route(asked)
    assert all(name in caught.value.message for name in llm.models)


def test_the_shipped_file_routes_as_the_contract_says():
    llm = load_yaml(REPOSITORY / "configs" / "llm.yaml", LLMSettings)
    targets = {
        route.logical_model: [target.provider for target in route.targets]
        for route in RoutingTable(llm).routes()
    }
    assert targets == {
        "gpt-4.1-mini": ["openai", "local"],
        "gpt-4": ["openai", "local"],
        "deepseek-r1": ["deepseek"],
        "dagi-local-8b": ["local"],
    }
    assert llm.limits.agent.requests_per_minute >= 200_000
    first = {
        route.logical_model: route.primary.timeouts.begin_s()
        for route in RoutingTable(llm).routes()
    }
    assert first == {"gpt-4.1-mini": 12, "gpt-4": 12, "deepseek-r1": 30, "dagi-local-8b": 60}


@given(settings(), st.integers(1, 10), st.integers(1, 10), st.integers(1, 10))
def test_retries_are_inherited_value_by_value(llm, of_file, of_provider, of_model):
    raw = llm.model_dump(mode="json", exclude_none=True)
    name, model = next(iter(raw["models"].items()))
    raw["retry"] = {"attempts": of_file, "backoff_s": 1}
    raw["providers"][model["provider"]]["retry"] = {"attempts": of_provider, "max_backoff_s": 3}
    raw["providers"][model["provider"]]["circuit"] = {"failures": 7}
    model["retry"] = {"attempts": of_model}
    target = route_model(LLMSettings.model_validate(raw), name).primary
    assert (target.retry.attempts, target.retry.backoff_s, target.retry.max_backoff_s) == (
        of_model,
        1,
        3,
    )
    assert (target.circuit.failures, target.circuit.calls) == (7, 20)


def test_a_remote_model_that_does_not_think_hands_over_after_twelve_seconds_without_a_token():
    text = """
providers:
  far: {base_url: 'http://h'}
  slow: {base_url: 'http://s', timeouts: {first_token_handover_s: 25}}
  here: {type: local}
models:
  guarded: {provider: far, name: a, fallbacks: [engine]}
  spilling: {provider: far, name: b, spill: {to: [engine], queue_depth: 1}}
  alone: {provider: far, name: a}
  thinking: {provider: far, name: c, reasoning: true, fallbacks: [engine]}
  opened: {provider: far, name: d, reasoning: opened, fallbacks: [engine]}
  patient: {provider: slow, name: a, fallbacks: [engine]}
  engine: {provider: here, name: tiny, fallbacks: [guarded]}
"""
    table = RoutingTable(parse_yaml(text, LLMSettings, name="llm.yaml"))
    first = {route.logical_model: route.primary.timeouts.begin_s() for route in table.routes()}
    assert first == {
        "guarded": 12,
        "spilling": 12,
        "alone": 60,
        "thinking": 60,
        "opened": 60,
        "patient": 25,
        "engine": 60,
    }
    assert table.route("guarded").primary.timeouts.whole_s() == 120, (
        "of a whole answer nothing comes before its end"
    )


def test_spill_targets_are_those_of_the_named_models_but_the_own_one():
    text = """
providers: {local: {type: local}, far: {base_url: 'http://h'}}
models:
  own: {provider: local, name: tiny, spill: {to: [same, big], queue_depth: 9}}
  same: {provider: local, name: tiny}
  big: {provider: far, name: big}
"""
    route = RoutingTable(parse_yaml(text, LLMSettings, name="llm.yaml")).route("own")
    assert [target.name for target in route.spill.targets] == ["big"]
    assert (route.spill.queue_depth, route.spill.return_depth, len(route.every_target)) == (9, 4, 2)


@pytest.mark.parametrize(
    "provider",
    [
        "{base_url: 'https://h/v1', api_key_env: A_KEY}",
        "{base_url: 'http://127.0.0.1:8000/v1', api_key_env: A_KEY}",
        "{base_url: 'http://[::1]:8000/v1', api_key_env: A_KEY}",
        "{base_url: 'http://localhost/v1', api_key_env: A_KEY}",
        "{base_url: 'http://vllm:8000/v1', api_key_env: A_KEY, insecure: true}",
        "{base_url: 'http://vllm:8000/v1'}",
        "{type: local}",
    ],
)
def test_a_key_goes_over_tls_to_this_machine_or_where_the_operator_says_so(provider):
    parse_yaml(
        f"providers: {{a: {provider}}}\nmodels: {{m: {{provider: a, name: x}}}}",
        LLMSettings,
        name="llm.yaml",
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "providers: {a: {base_url: 'http://h'}}\nmodels: {m: {provider: b, name: x}}",
            "`b` is not among providers: a",
        ),
        (
            (
                "providers: {a: {base_url: 'http://h'}}\n"
                "models: {m: {provider: a, name: x, fallbacks: [z]}}"
            ),
            "`z` must be another model",
        ),
        (
            (
                "providers: {a: {base_url: 'http://h'}}\n"
                "models: {m: {provider: a, name: x, spill: {to: [z], queue_depth: 1}}}"
            ),
            "spill.to: `z`",
        ),
        (
            (
                "providers: {a: {type: local}}\nmodels: {m: {provider: a, name: x, "
                "spill: {to: [m], queue_depth: 2, return_depth: 2}}}"
            ),
            "`return_depth` must be below",
        ),
        (
            (
                "providers: {a: {base_url: 'http://h'}}\n"
                "models: {m: {provider: a, name: x, retry: {attempts: 0}}}"
            ),
            "retry.attempts",
        ),
        (
            (
                "providers: {a: {base_url: 'http://h'}}\n"
                "models: {m: {provider: a, name: x, stream_recovery: hope}}"
            ),
            "stream_recovery",
        ),
        (
            "providers: {a: {base_url: 'http://u:p@h'}}\nmodels: {m: {provider: a, name: x}}",
            "no credentials",
        ),
        ("providers: {a: {}}\nmodels: {m: {provider: a, name: x}}", "`base_url` is required"),
        (
            "providers: {a: {base_url: 'ftp://h'}}\nmodels: {m: {provider: a, name: x}}",
            "http:// or https://",
        ),
        (
            (
                "providers: {a: {base_url: 'http://h', headers: {Authorization: x}}}\n"
                "models: {m: {provider: a, name: x}}"
            ),
            "api_key_env",
        ),
        (
            (
                "providers: {a: {base_url: 'http://vllm:8000/v1', api_key_env: A_KEY}}\n"
                "models: {m: {provider: a, name: x}}"
            ),
            (
                "providers.a: Value error, base_url: the key in A_KEY would go over plain http:// "
                "to another machine: use https://, or"
            ),
        ),
        (
            (
                "providers: {a: {base_url: 'https://h', api_key_env: DAARION_ADMIN_SECRET}}\n"
                "models: {m: {provider: a, name: x}}"
            ),
            "providers.a: Value error, api_key_env: DAARION_ADMIN_SECRET holds a secret of",
        ),
        (
            "providers: {a: {base_url: 'http://h', key: x}}\nmodels: {m: {provider: a, name: x}}",
            "providers.a.key",
        ),
        ("models: {}", "models"),
        ("a: 1\na: 2", "duplicate key `a`"),
        ("- 1", "mapping"),
        ("{", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_key_and_reason(text, reason):
    with pytest.raises(ConfigurationError) as caught:
        parse_yaml(text, LLMSettings, name="llm.yaml")
    assert caught.value.message.startswith("llm.yaml: ")
    assert reason in caught.value.message
    assert "\n" not in caught.value.message
