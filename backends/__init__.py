"""Adapters to PostgreSQL."""
