"""Transformers of a few thousand random weights, with a tokenizer of letters, saved as folders."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

WINDOW = 64
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
_WORDS = [*_SPECIAL, "yes", "no", *string.ascii_lowercase]


def cross_encoder(folder: Path, labels: int = 1, **config: Any) -> Path:
    """Saves a network with a head of `labels` outputs; a token is one letter."""
    return _saved(folder, BertForSequenceClassification(_bert(num_labels=labels, **config)))


def encoder(folder: Path) -> Path:
    """Saves a network without a head."""
    return _saved(folder, BertModel(_bert()))


def chat_model(folder: Path) -> Path:
    """Saves a network that continues texts; its tokenizer knows `yes` and `no`."""
    config = LlamaConfig(
        vocab_size=len(_WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=WINDOW,
    )  # fmt: skip
    return _saved(folder, LlamaForCausalLM(config))


def _bert(**config: Any) -> BertConfig:
    return BertConfig(
        vocab_size=len(_WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=WINDOW, **config,
    )  # fmt: skip


def _saved(folder: Path, network: torch.nn.Module) -> Path:
    # The same in every run, and large enough for clearly different scores.
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator) - parameter)
    network.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(_WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=WINDOW, **names)
