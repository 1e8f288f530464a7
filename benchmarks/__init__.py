"""Measured comparisons, each one command. `python -m benchmarks.llm.bench` is the LLM proxy's."""
