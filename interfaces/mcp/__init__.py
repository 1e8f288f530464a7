"""Applications as MCP servers."""
