"""Registered tool functions, `function(args, context) -> JSON value`. Standard library only: they run in a bare sandbox."""
