"""Recipe of the LLM: SmolLM2-135M-Instruct, 4-bit GGUF → transformers folder in bfloat16."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerFast

from modelbuild.quiet import quiet_libraries


def build_llm(gguf_file: Path, folder: Path) -> None:
    """Writes weights, configuration, tokenizer and chat template of the GGUF file into `folder`."""
    with quiet_libraries():
        context_length = _save_model(gguf_file, folder)
        _save_tokenizer(gguf_file, folder, context_length)


def _save_model(gguf_file: Path, folder: Path) -> int:
    model = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent,
        gguf_file=gguf_file.name,
        quantization_config=GgufConfig(gguf_file=gguf_file.name, dequantize=True),
        dtype=torch.bfloat16,
        local_files_only=True,
    )
    # The saved weights are plain: these marks would make a loader look for the quantised form.
    for mark in ("quantization_config", "_model_name_or_path"):
        if hasattr(model.config, mark):
            delattr(model.config, mark)
    model.save_pretrained(folder)
    return int(model.config.max_position_embeddings)


def _save_tokenizer(gguf_file: Path, folder: Path, context_length: int) -> None:
    loaded = AutoTokenizer.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, local_files_only=True
    )
    backend = loaded.backend_tokenizer
    # GGUF names the pre-tokenizer ("smollm") without describing it, and the loader falls back to
    # GPT-2's: SmolLM splits off every digit first, which changes the spaces before numbers.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
        bos_token=loaded.bos_token,
        eos_token=loaded.eos_token,
        unk_token=loaded.unk_token,
        pad_token=loaded.pad_token,
    )
    tokenizer.chat_template = loaded.chat_template
    tokenizer.save_pretrained(folder)
