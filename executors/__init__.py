"""Executors of tools."""
