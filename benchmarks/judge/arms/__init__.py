"""The arms of the judge, one file per method; ``registry.py`` has their settings."""
