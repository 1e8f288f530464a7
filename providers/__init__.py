"""LLM providers, and routing as pure logic."""
