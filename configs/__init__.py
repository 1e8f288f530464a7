"""The files that an operator edits, their typed models, and the one reader of the environment."""
