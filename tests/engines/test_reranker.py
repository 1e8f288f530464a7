"""The reranker with cross-encoders of random weights, without Ray."""

import asyncio
import threading

import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from configs.engines.embedder import RerankerSettings
from contracts.errors import (
    ConfigurationError,
    DeadlineExceeded,
    EngineUnavailable,
    InvalidRequest,
    Overloaded,
)
from deployments.engines.reranker import LocalReranker, PairScorer
from tests.support.engines.tiny_models import WINDOW, chat_model, cross_encoder, encoder

QUESTION = "w h e r e"
TEXTS = ["a b c", "h e r e", "w h e r e i s i t", "x " * 30, "q"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return cross_encoder(tmp_path_factory.mktemp("cross-encoder"))


def settings(**changes) -> RerankerSettings:
    return RerankerSettings.model_validate({"model": "tiny", **changes})


def scores(scorer: PairScorer, texts: list[str], question: str = QUESTION) -> list[float]:
    return scorer.score([(question, text) for text in texts])


def test_scores_are_the_networks_own_as_probabilities(model):
    found = scores(PairScorer(settings(), str(model)), TEXTS)
    network = AutoModelForSequenceClassification.from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    with torch.inference_mode():
        outputs = [
            network(**tokenizer(QUESTION, text, return_tensors="pt")).logits for text in TEXTS
        ]
    assert found == pytest.approx([float(output.sigmoid()) for output in outputs], abs=1e-5)
    assert max(found) - min(found) > 0.02  # the texts do not look the same to it


def test_scores_are_in_0_to_1_whatever_function_the_model_names(tmp_path, model):
    raw = cross_encoder(
        tmp_path,
        sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"},
    )
    assert isinstance(CrossEncoder(str(raw)).activation_fn, torch.nn.Identity)
    assert scores(PairScorer(settings(), str(raw)), TEXTS) == pytest.approx(
        scores(PairScorer(settings(), str(model)), TEXTS)
    )


@pytest.mark.parametrize(("max_tokens", "window"), [(512, WINDOW), (32, 32)])
def test_long_texts_are_cut_at_the_shorter_window(model, max_tokens, window):
    scorer = PairScorer(settings(max_tokens=max_tokens), str(model))
    assert scorer.max_tokens == window
    longest = "x " * (window - 9)  # beside three marks, the question's five words, and one more
    ends = [longest + end for end in ("a", "b", "a b c", "a " * 200_000)]
    last_seen_a, last_seen_b, *others = scores(scorer, ends)
    assert others == pytest.approx([last_seen_a, last_seen_a], abs=1e-6)
    assert abs(last_seen_a - last_seen_b) > 1e-4
    assert len(scores(scorer, TEXTS, question="w h y " * 50_000)) == len(TEXTS)


def test_a_pass_is_bounded_in_tokens_whatever_the_mixture(model, monkeypatch):
    scorer = PairScorer(settings(max_tokens=64, batch={"max_tokens": 256}), str(model))
    seen = []
    forward = scorer._model.forward

    def counted(features, **options):
        seen.append(features["input_ids"].shape)
        return forward(features, **options)

    monkeypatch.setattr(scorer._model, "forward", counted)
    assert len(scores(scorer, ["x " * 300, *["a"] * 15])) == 16
    assert max(rows * length for rows, length in seen) <= 256


def test_hostile_texts_have_scores_and_harm_no_neighbour(model):
    scorer = PairScorer(settings(), str(model))
    found = scores(scorer, ["h e r e", "\ud800 lone", "\x00", "", " ", "ї" * 50_000, "🙂" * 2_000])
    assert found[0] == pytest.approx(scores(scorer, ["h e r e"])[0], abs=1e-5)
    assert all(0 <= score <= 1 for score in found)


def test_what_is_no_cross_encoder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    folders = {
        str(encoder(tmp_path / "encoder")): "`tiny` is no cross-encoder with one score",
        str(chat_model(tmp_path / "chat")): "`tiny` is no cross-encoder with one score",
        str(cross_encoder(tmp_path / "three", labels=3)): "`tiny` is no cross-encoder",
        str(tmp_path): "`tiny` cannot be loaded",
    }
    for folder, expected in folders.items():
        with pytest.raises(ConfigurationError, match=f"reranker.model: {expected}"):
            PairScorer(settings(), folder)


@pytest.mark.parametrize("network", [cross_encoder, chat_model])
def test_a_folder_that_the_library_saved_as_a_cross_encoder_is_accepted(tmp_path, network):
    saved = tmp_path / "saved"
    CrossEncoder(str(network(tmp_path / "plain"))).save_pretrained(str(saved))
    assert all(0 <= score <= 1 for score in scores(PairScorer(settings(), str(saved)), TEXTS))


def test_outputs_that_are_no_numbers_are_no_scores(tmp_path):
    folder = cross_encoder(tmp_path)
    scorer = PairScorer(settings(), str(folder))
    with torch.no_grad():
        scorer._model.model.classifier.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        scores(scorer, TEXTS)


async def until(condition) -> None:
    """Waits for the condition; pytest bounds the test."""
    while not condition():
        await asyncio.sleep(0.01)


class Gate:
    """Holds the model's passes after the warm-up until it is opened."""

    def __init__(self, reranker: LocalReranker) -> None:
        self.error: Exception | None = None
        self.passes: list[int] = []
        self._open = threading.Event()
        self._score = reranker._scorer.score
        reranker._batcher._run = self.score

    def score(self, pairs, _kind):
        self.passes.append(len(pairs))
        assert self._open.wait(60)
        if self.error is not None:
            raise self.error
        return self._score(pairs)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
async def reranker(model):
    made = LocalReranker.__new__(LocalReranker)
    await made.__init__(
        settings(
            batch={"max_texts": 4},
            queue={"max_texts": 600, "max_texts_per_tenant": 512},
        ),
        str(model),
    )
    yield made
    made._batcher._dispatcher.cancel()


async def test_scores_of_many_callers_come_in_their_own_order(reranker):
    alone = [await reranker.score(QUESTION, [text], "a", 60) for text in TEXTS]
    together = await asyncio.gather(
        *(reranker.score(QUESTION, TEXTS[::step], f"tenant:{step}", 60) for step in (1, -1))
    )
    expected = [score for (score,) in alone]
    assert together[0] == pytest.approx(expected, abs=1e-5)
    assert together[1] == pytest.approx(expected[::-1], abs=1e-5)


async def test_texts_beyond_the_queue_are_refused_as_overloaded(reranker):
    gate = Gate(reranker)
    first = asyncio.create_task(reranker.score(QUESTION, ["a"], "first", 60))
    await until(lambda: gate.passes)
    waiting = asyncio.create_task(reranker.score(QUESTION, ["a"] * 512, "big", 60))
    await until(lambda: reranker._batcher.lanes.waiting == 512)
    with pytest.raises(Overloaded, match="of this tenant"):
        await reranker.score(QUESTION, ["b"], "big", 60)
    with pytest.raises(Overloaded, match="too many texts wait"):
        await reranker.score(QUESTION, ["b"] * 89, "other", 60)
    gate.open()
    assert len(await first) == 1
    assert len(await waiting) == 512
    assert len(await reranker.score(QUESTION, ["b"] * 89, "other", 60)) == 89


async def test_the_deadline_passes_while_a_batch_runs_and_the_rest_is_dropped(reranker):
    gate = Gate(reranker)
    first = asyncio.create_task(reranker.score(QUESTION, ["a"], "first", 60))
    await until(lambda: gate.passes)
    with pytest.raises(DeadlineExceeded):
        await reranker.score(QUESTION, ["b"] * 30, "late", 0.05)
    assert not first.done()
    assert (await reranker.stats())["waiting"] == 0
    gate.open()
    await first
    assert gate.passes == [1]  # nothing of the late call was computed
    await reranker.check_health()


async def test_a_failed_batch_is_retryable_and_the_next_one_works(reranker):
    gate = Gate(reranker)
    gate.error = RuntimeError("out of memory")
    gate.open()
    with pytest.raises(EngineUnavailable, match="the reranker failed on this batch"):
        await reranker.score(QUESTION, TEXTS, "a", 60)
    gate.error = None
    assert len(await reranker.score(QUESTION, TEXTS, "a", 60)) == len(TEXTS)


@pytest.mark.parametrize("texts", [[], ["a"] * 513], ids=["none", "too many"])
async def test_a_call_has_a_number_of_texts(reranker, texts):
    with pytest.raises(InvalidRequest, match="from 1 to 512 texts"):
        await reranker.score(QUESTION, texts, "a", 60)
