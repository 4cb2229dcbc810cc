"""Storing new tokens: wide numbers, products with encoders, codes."""
