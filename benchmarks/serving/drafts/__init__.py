"""Acceptance of drafts over a compressed cache, and a drafter for it."""
