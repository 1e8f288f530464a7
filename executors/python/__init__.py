"""The Python executor: each call of a registered function runs in a sandboxed child process."""
