"""Tools of outside MCP servers."""
