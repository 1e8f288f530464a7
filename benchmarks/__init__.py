"""Measured comparisons, each one command. `python -m benchmarks.llm` is the LLM proxy's."""
