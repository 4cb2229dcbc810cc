"""What a library's error becomes in a sentence of ours."""

import pytest

from offline_compress.run.errors import reason


@pytest.mark.parametrize("line", [0, -1])
def test_an_error_without_words_is_named(line):
    assert reason(ValueError(""), line) == "ValueError"
    assert reason(OSError(" \n "), line) == "OSError"


def test_one_line_of_many():
    error = ValueError("\nfirst \n second\n\n third \n")
    assert (reason(error), reason(error, line=-1)) == ("first", "third")
