"""The real embedding model as the product loads it."""

import numpy as np
import pytest

from configs.engines.config import load_engines
from configs.engines.embedder import LocalEmbedderSettings, embedder_source
from configs.environment import read_environment
from contracts.errors import ConfigurationError, InvalidRequest
from deployments.engines.frozen import freeze
from deployments.engines.sentence_encoder import SentenceEncoder

pytestmark = [pytest.mark.models, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def settings() -> LocalEmbedderSettings:
    return load_engines(read_environment()).embedder


@pytest.fixture(scope="module")
def encoder(settings) -> SentenceEncoder:
    return SentenceEncoder(settings, embedder_source(settings, read_environment()))


def rows(encoder, texts, kind="passage", *, neutral=False):
    vectors = [data for data, _ in encoder.encode(texts, kind)]
    return np.stack(
        [
            np.frombuffer(data, "<f4")
            for data in (encoder.neutral(texts, vectors) if neutral else vectors)
        ]
    )


def test_vectors_equal_the_librarys_for_prefixed_texts(encoder, settings):
    """Another server of the model returns these vectors for the prefixed texts."""
    texts = ["Де ключ від майстерні?", "key"]
    expected = encoder._model.encode(
        [f"query: {text}" for text in texts], normalize_embeddings=True
    )
    assert np.allclose(rows(encoder, texts, "query"), expected, atol=1e-5)
    alone, count = encoder.encode(texts[:1], "query")[0]
    assert np.allclose(np.frombuffer(alone, "<f4"), expected[0], atol=1e-5)
    assert count == encoder.encode(texts, "query")[0][1]


def test_answers_in_the_other_language_come_before_other_topics(encoder):
    question = ["Скільки коштує оренда зали?"]
    texts = [
        "Renting the hall costs 4,200 a night.",
        "Ремонт даху школи почнуть у травні.",
        "Коли приїде автобус?",
    ]
    own = (rows(encoder, question, "query") @ rows(encoder, texts).T)[0]
    neutral = (
        rows(encoder, question, "query", neutral=True) @ rows(encoder, texts, neutral=True).T
    )[0]
    assert own.argmax() != 0  # the model alone prefers the question's language
    assert neutral.argmax() == 0
    assert own.min() > 0.7 > neutral.max() > 0.2 > neutral.min()


def test_hostile_texts_have_vectors_and_harm_no_neighbour(encoder):
    texts = [
        "звичайний текст",
        "\ud800 lone",
        "\x00",
        "",
        " ",
        "ї" * 50_000,
        "🙂" * 2_000,
        "a\u0301" * 500,
    ]
    found = rows(encoder, texts)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-4)
    assert np.allclose(found[0], rows(encoder, texts[:1])[0], atol=1e-3)
    assert all(1 <= count <= 512 for _, count in encoder.encode(texts, "passage"))


TEXTS = [
    "Де ключ від майстерні?",
    "key",
    "Рядок.\n\nІнший рядок  із пробілами, №½ і 🙂",
    "ї" * 300,
    "don't stop , he said",
]


def test_arrays_of_the_models_own_tokens_are_their_texts(encoder):
    """The tokens of a client that uses the model's own tokenizer."""
    arrays = encoder._model.tokenizer(TEXTS)["input_ids"]
    assert (arrays[0][0], arrays[0][-1]) == (0, 2)
    read = encoder.texts_of([*arrays, "beside a text"])
    assert read[-1] == "beside a text"
    assert encoder._model.tokenizer(read[:-1])["input_ids"] == arrays


FOREIGN = {
    "hello world, of another tokenizer": [15339, 1917],
    "without the marks": [1813, 24046, 4],
    "without the last": [0, 1813, 24046],
    "without the first": [1813, 24046, 2],
    "beyond the vocabulary": [0, 250_002, 2],
    "far beyond": [0, 2**31 - 1, 2],
}


@pytest.mark.parametrize("tokens", FOREIGN.values(), ids=FOREIGN)
def test_arrays_of_another_tokenizer_are_refused_with_the_setting_to_change(encoder, tokens):
    with pytest.raises(InvalidRequest, match="check_embedding_ctx_length=False"):
        encoder.texts_of(["a text", tokens])


def test_arrays_without_a_text_are_refused(encoder):
    for tokens in ([0, 2], [0, 6, 2], [0, 1, 1, 2]):
        with pytest.raises(InvalidRequest, match="empty"):
            encoder.texts_of([tokens])


def test_another_dimension_than_the_models_is_refused(settings):
    with pytest.raises(ConfigurationError, match="256, but the model has 384"):
        SentenceEncoder(
            settings.model_copy(update={"dimension": 256}),
            embedder_source(settings, read_environment()),
        )


def test_a_folder_without_a_loadable_model_is_refused(settings, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        SentenceEncoder(settings, str(tmp_path))


def test_the_network_runs_as_a_graph_and_gives_the_same_vectors(encoder):
    texts = [
        "a",
        "Які проєкти має наше мікроДАО?",
        "Which projects does our microDAO have? " * 12,
        "word " * 900,
    ]
    assert encoder.frozen
    network = encoder._model[0].auto_model
    as_graph = [np.frombuffer(data, "<f4") for data, _ in encoder.encode(texts, "passage")]
    graph = network.__dict__.pop("forward")
    try:
        as_it_is = [np.frombuffer(data, "<f4") for data, _ in encoder.encode(texts, "passage")]
    finally:
        network.forward = graph
    assert min(float(one @ other) for one, other in zip(as_graph, as_it_is, strict=True)) > 0.9999


def test_a_network_that_cannot_be_traced_runs_as_it_is(encoder, monkeypatch):
    network = encoder._model[0].auto_model
    graph = network.__dict__.pop("forward")
    try:
        monkeypatch.setattr(
            "torch.jit.trace", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("not traceable"))
        )
        assert not freeze(encoder._model)
        assert "forward" not in network.__dict__
    finally:
        network.forward = graph
