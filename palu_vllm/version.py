"""The version of this package, in a file of its own because most modules must not import the package's root."""

__version__ = "0.1.0"
