"""The supervisor behind `make run`: owns PostgreSQL, NATS and Serve, and nothing else.

It imports neither ray nor torch: Serve is a child process like the stores.
"""
