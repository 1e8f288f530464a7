"""Embedding models of other architectures, by hub id, with the settings of docs/retrieval.md.

The weights are random and the networks small, but for the dimension: architecture, tokenizer and
the files that say how to pool are those of the published models.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from configs.engines.config import EnginesSettings, load_engines
from configs.engines.embedder import LocalEmbedderSettings, embedder_source
from configs.environment import Environment, read_environment
from deployments.engines.sentence_encoder import SentenceEncoder

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/retrieval.md"
BGE, QWEN = "BAAI/bge-m3", "Qwen/Qwen3-Embedding-0.6B"
DIMENSION = 1_024
VOCABULARY = ["<s>", "<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz", *"абвгдежзиклмно"]
TEXTS = ["a cat", "де кіт " * 9, "x", "some more words " * 5]
"""Few enough tokens for one pass, in which the shorter ones are padded."""
LONG = "a long text of many words " * 35


def examples() -> dict[str, dict]:
    """Returns the settings in the document, by the model's hub id."""
    section = DOCUMENT.read_text().split("### Other models")[1].split("\n## ")[0]
    blocks = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    return {one["embedder"]["model"]: one["embedder"] for one in map(yaml.safe_load, blocks)}


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Environment:
    """A data directory with both models in folders that are named like their hub ids."""
    folder = tmp_path_factory.mktemp("data")
    make_bge(folder / BGE)
    make_qwen(folder / QWEN)
    return replace(read_environment(), data_dir=folder)


@pytest.fixture(scope="module", params=[BGE, QWEN])
def encoder(request, environment) -> SentenceEncoder:
    settings = LocalEmbedderSettings.model_validate(examples()[request.param])
    return SentenceEncoder(settings, embedder_source(settings, environment))


@pytest.mark.parametrize("model", [BGE, QWEN])
def test_the_documented_settings_are_accepted_and_name_the_hub(model, tmp_path):
    """Where no folder has the name, the library fetches the model from the hub."""
    engines = yaml.safe_load((read_environment().config_dir / "engines.yaml").read_text())
    (tmp_path / "engines.yaml").write_text(
        yaml.safe_dump(engines | {"embedder": examples()[model]})
    )
    environment = replace(read_environment(), config_dir=tmp_path, data_dir=tmp_path)
    settings = load_engines(environment).embedder
    assert isinstance(load_engines(environment), EnginesSettings)
    assert embedder_source(settings, environment) == model
    assert settings.dimension == DIMENSION
    assert settings.prefixes.passage == ""


def test_only_qwens_questions_have_an_instruction():
    prefixes = {model: settings.get("prefixes", {}) for model, settings in examples().items()}
    assert prefixes[BGE] == {}
    assert prefixes[QWEN].keys() == {"query"}
    assert re.fullmatch(r"Instruct: [^\n]+\nQuery:", prefixes[QWEN]["query"])


def test_versions_and_names_differ_from_each_other_and_from_the_default():
    default = load_engines(read_environment()).embedder
    known = [default, *map(LocalEmbedderSettings.model_validate, examples().values())]
    assert len({one.version for one in known}) == len({one.served_name for one in known}) == 3


def test_vectors_are_the_librarys_pooled_as_the_models_files_say(encoder, environment):
    settings = encoder._settings
    source = embedder_source(settings, environment)
    mode = {BGE: "cls", QWEN: "lasttoken"}[settings.model]
    counts = encoder._count([settings.prefixes.of("query") + text for text in TEXTS])
    assert encoder._batch_size(counts) >= len(TEXTS)
    reference = SentenceTransformer(source, local_files_only=True)
    assert reference[1].pooling_mode == mode
    network, tokenizer = reference[0].auto_model.eval(), reference.tokenizer
    for kind in ("query", "passage"):
        together = np.concatenate([rows(encoder, TEXTS, kind), rows(encoder, [LONG], kind)])
        assert together.shape == (len(TEXTS) + 1, DIMENSION)
        assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-4)
        for text, found in zip([*TEXTS, LONG], together, strict=True):
            prepared = settings.prefixes.of(kind) + text
            tokens = tokenizer(
                [prepared], truncation=True, max_length=settings.max_tokens, return_tensors="pt"
            )
            with torch.inference_mode():
                states = network(**tokens).last_hidden_state[0]
            pooled = states[0 if mode == "cls" else -1].numpy()
            assert np.allclose(found, pooled / np.linalg.norm(pooled), atol=1e-4)
            assert np.allclose(found, rows(encoder, [text], kind)[0], atol=1e-4)


def test_a_question_differs_from_the_same_passage_only_where_it_has_a_prefix(encoder):
    question, passage = (rows(encoder, TEXTS[:1], kind)[0] for kind in ("query", "passage"))
    assert (float(question @ passage) > 0.9999) == (encoder._settings.model == BGE)


def test_the_mark_at_the_end_stays_where_a_text_is_cut(encoder):
    """Qwen's vector is that of its last token, which the tokenizer puts behind every text."""
    _, tokens = encoder.encode(["a word " * 5_000], "query")[0]
    cut = encoder._model.tokenizer(["a word " * 5_000], truncation=True, max_length=tokens)
    end = {BGE: "</s>", QWEN: "<|endoftext|>"}[encoder._settings.model]
    assert tokens == encoder._settings.max_tokens
    assert encoder._model.tokenizer.convert_ids_to_tokens(cut["input_ids"][0])[-1] == end


def test_memorys_vectors_lose_the_languages_part_in_these_models_too(encoder):
    vectors = [data for data, _ in encoder.encode(TEXTS, "passage")]
    neutral = [np.frombuffer(data, "<f4") for data in encoder.neutral(TEXTS, vectors)]
    assert np.allclose(np.linalg.norm(neutral, axis=1), 1, atol=1e-4)
    assert encoder._settings.memory_space.model_version.endswith("+neutral1")


def test_a_prompt_that_the_model_applies_by_itself_is_not_added(environment, tmp_path):
    """Prefixes are those of the settings alone, for one text and for many; padding on the other
    side changes nothing.
    """
    folder = tmp_path / "qwen"
    make_qwen(folder, default_prompt_name="query", padding_side="left")
    settings = LocalEmbedderSettings.model_validate(
        {**examples()[QWEN], "model": str(folder), "language_neutral": False}
    )
    encoder = SentenceEncoder(settings, embedder_source(settings, environment))
    assert encoder._model.tokenizer.padding_side == "left"
    alone = np.stack([rows(encoder, [text])[0] for text in TEXTS])
    assert np.allclose(rows(encoder, TEXTS), alone, atol=1e-4)


def rows(encoder, texts, kind="passage"):
    return np.stack([np.frombuffer(data, "<f4") for data, _ in encoder.encode(texts, kind)])


def make_bge(folder: Path) -> None:
    """XLM-RoBERTa with 8,194 positions, pooled at its first token, as BGE-M3 is published."""
    torch.manual_seed(1)
    network = XLMRobertaModel(
        XLMRobertaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=DIMENSION,
            num_hidden_layers=2,
            num_attention_heads=16,
            intermediate_size=64,
            max_position_embeddings=8_194,
            type_vocab_size=1,
            initializer_range=0.2,
        )
    )
    save(folder, network, tokenizer("<s> $A </s>", "<pad>", pad_id=1), "cls", {})


def make_qwen(
    folder: Path, default_prompt_name: str | None = None, padding_side: str = "right"
) -> None:
    """Qwen3, pooled at its last token, with the prompt of Qwen3-Embedding's own files."""
    torch.manual_seed(2)
    network = Qwen3Model(
        Qwen3Config(
            vocab_size=len(VOCABULARY) + 1,
            hidden_size=DIMENSION,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=64,
            initializer_range=0.2,
            max_position_embeddings=32_768,
            pad_token_id=len(VOCABULARY),
        )
    )
    prompts = {"query": "Instruct: find what answers\nQuery:", "document": ""}
    own = {"prompts": prompts, "default_prompt_name": default_prompt_name}
    marks = tokenizer("$A <|endoftext|>", "<|endoftext|>", pad_id=len(VOCABULARY))
    save(folder, network, marks, "lasttoken", own, padding_side)


def tokenizer(template: str, padding: str, *, pad_id: int) -> PreTrainedTokenizerFast:
    """One token a letter; `template` has the marks at a text's ends."""
    vocabulary = {token: number for number, token in enumerate(VOCABULARY)}
    if padding not in vocabulary:
        vocabulary[padding] = pad_id
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    marks = [mark for mark in template.split() if mark != "$A"]
    made.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(mark, vocabulary[mark]) for mark in marks]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=padding,
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
        additional_special_tokens=marks,
    )


def save(
    folder: Path, network, marks, pooling: str, own: dict, padding_side: str = "right"
) -> None:
    """Writes the files of a sentence-transformers model."""
    network.eval().save_pretrained(folder)
    marks.save_pretrained(folder)
    kind = "sentence_transformers.models"
    key = {"cls": "pooling_mode_cls_token", "lasttoken": "pooling_mode_lasttoken"}[pooling]
    documents = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": f"{kind}.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{kind}.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{kind}.Normalize"},
        ],
        "sentence_bert_config.json": {"max_seq_length": 8_192, "do_lower_case": False},
        "config_sentence_transformers.json": {"similarity_fn_name": "cosine", **own},
        "1_Pooling/config.json": {"word_embedding_dimension": DIMENSION, key: True},
    }
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"padding_side": padding_side}))
    (folder / "1_Pooling").mkdir()
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document))
