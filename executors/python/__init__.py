"""The Python executor: each call of a registered function in a child process of its own, inside a sandbox."""
