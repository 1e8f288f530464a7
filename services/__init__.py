"""Use cases as plain async classes over ports."""
