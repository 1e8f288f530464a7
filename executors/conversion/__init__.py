"""Conversion of documents of other kinds into text, in a sandboxed child process."""
