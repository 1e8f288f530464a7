"""The agent runtime: from one message to one answer."""
