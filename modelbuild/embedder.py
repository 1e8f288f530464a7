"""Recipe of the embedder: packed multilingual-e5-small → sentence-transformers folder in float16.

It writes numpy arrays and JSON in the formats' published shapes, so it needs no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.models import Unigram

from modelbuild import e5_format
from modelbuild.e5_format import Geometry, PackedModel, Vocabulary

MASK = "<mask>"
# Prompts of the E5 family.
PROMPTS = {"query": "query: ", "document": "passage: "}


def build_embedder(model_file: Path, folder: Path) -> None:
    """Writes a folder for `SentenceTransformer(folder)`: mean pooling, normalised, 384 dimensions.

    Raises:
        FormatError: `model_file` is not a whole packed model.
    """
    model = e5_format.parse(model_file.read_bytes())
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_weights(model), folder / "model.safetensors", metadata={"format": "pt"})
    _tokenizer(model.vocabulary).save(str(folder / "tokenizer.json"), pretty=False)
    for name, content in _documents(model).items():
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        target.write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def _weights(model: PackedModel) -> dict[str, NDArray[np.float16]]:
    size = model.geometry
    hidden = size.hidden
    weights = {
        "embeddings.word_embeddings.weight": model.tensor("emb.word", size.vocabulary, hidden),
        "embeddings.position_embeddings.weight": model.tensor("emb.pos", size.positions, hidden),
        "embeddings.token_type_embeddings.weight": model.tensor(
            "emb.type", size.token_types, hidden
        ),
        "embeddings.LayerNorm.weight": model.tensor("emb.ln.w", hidden),
        "embeddings.LayerNorm.bias": model.tensor("emb.ln.b", hidden),
        # Mean pooling never reads the pooler; without it loaders warn and use random values.
        "pooler.dense.weight": np.zeros((hidden, hidden), np.float16),
        "pooler.dense.bias": np.zeros(hidden, np.float16),
    }
    for index in range(size.layers):
        weights |= _layer(model, index)
    return weights


def _layer(model: PackedModel, index: int) -> dict[str, NDArray[np.float16]]:
    hidden, wide = model.geometry.hidden, model.geometry.intermediate
    linear = {
        "attention.self.query": ("q", hidden, hidden),
        "attention.self.key": ("k", hidden, hidden),
        "attention.self.value": ("v", hidden, hidden),
        "attention.output.dense": ("ao", hidden, hidden),
        "intermediate.dense": ("fi", wide, hidden),
        "output.dense": ("fo", hidden, wide),
    }
    norms = {"attention.output.LayerNorm": "aln", "output.LayerNorm": "oln"}
    here, there = f"l{index}", f"encoder.layer.{index}"
    weights: dict[str, NDArray[np.float16]] = {}
    for name, (short, rows, columns) in linear.items():
        weights[f"{there}.{name}.weight"] = model.tensor(f"{here}.{short}.w", rows, columns)
        weights[f"{there}.{name}.bias"] = model.tensor(f"{here}.{short}.b", rows)
    for name, short in norms.items():
        weights[f"{there}.{name}.weight"] = model.tensor(f"{here}.{short}.w", hidden)
        weights[f"{there}.{name}.bias"] = model.tensor(f"{here}.{short}.b", hidden)
    return weights


def _tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    # The XLM-RoBERTa pipeline. NMT + NFKC replaces the file's per-character table: they agree on
    # every character but U+FF5E and U+1F23B, and NFKC joins combining marks as the original does.
    tokenizer = Tokenizer(
        Unigram(list(vocabulary.pieces), unk_id=vocabulary.unk, byte_fallback=False)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    bos, eos = _special(vocabulary, "bos"), _special(vocabulary, "eos")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} {eos} $B {eos}",
        special_tokens=[(bos, vocabulary.bos), (eos, vocabulary.eos)],
    )
    special = [
        AddedToken(_special(vocabulary, name), special=True, normalized=False)
        for name in ("bos", "pad", "eos", "unk")
    ]
    tokenizer.add_special_tokens(
        [*special, AddedToken(MASK, lstrip=True, special=True, normalized=False)]
    )
    return tokenizer


def _special(vocabulary: Vocabulary, name: str) -> str:
    index: int = getattr(vocabulary, name)
    return vocabulary.pieces[index][0]


def _documents(model: PackedModel) -> dict[str, Any]:
    size, vocabulary = model.geometry, model.vocabulary
    return {
        "config.json": _bert_config(size, vocabulary),
        "tokenizer_config.json": _tokenizer_config(size, vocabulary),
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {
                "idx": 1,
                "name": "1",
                "path": "1_Pooling",
                "type": "sentence_transformers.models.Pooling",
            },
            {
                "idx": 2,
                "name": "2",
                "path": "2_Normalize",
                "type": "sentence_transformers.models.Normalize",
            },
        ],
        "sentence_bert_config.json": {"max_seq_length": size.positions, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": PROMPTS,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": size.hidden,
            "pooling_mode_mean_tokens": True,
        },
    }


def _bert_config(size: Geometry, vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "dtype": "float16",
        "vocab_size": size.vocabulary,
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "intermediate_size": size.intermediate,
        "max_position_embeddings": size.positions,
        "type_vocab_size": size.token_types,
        "layer_norm_eps": size.norm_epsilon,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "pad_token_id": vocabulary.pad,
    }


def _tokenizer_config(size: Geometry, vocabulary: Vocabulary) -> dict[str, Any]:
    bos, eos = _special(vocabulary, "bos"), _special(vocabulary, "eos")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": size.positions,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "bos_token": bos,
        "cls_token": bos,
        "eos_token": eos,
        "sep_token": eos,
        "pad_token": _special(vocabulary, "pad"),
        "unk_token": _special(vocabulary, "unk"),
        "mask_token": MASK,
    }
