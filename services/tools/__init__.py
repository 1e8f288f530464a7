"""The tool use cases: registry, policy, calls, results, audit."""
