"""The registry as an MCP server."""
