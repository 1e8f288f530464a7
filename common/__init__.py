"""Mechanisms that every room may use, below all of them."""
