"""Codecs for tests."""
