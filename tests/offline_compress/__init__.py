"""Tests of palu-compress, one file per source file."""
