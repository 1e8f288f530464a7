"""What an operator edits (`*.yaml`), its typed models, and the one reader of the process environment."""
