"""Wire shapes, the error tree and the ports. Standard library and pydantic only, no I/O."""
