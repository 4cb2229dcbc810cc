"""Input that is refused, and what a library's error becomes in a sentence of ours."""


class CompressionError(ValueError):
    """Input that cannot be compressed. The message is one sentence: what was got, what was expected, what to do."""


def reason(error: Exception, line: int = 0) -> str:
    """Returns one line of what a library said, the kind of its error where it said nothing."""
    lines = str(error).strip().splitlines()
    return lines[line].strip() if lines else type(error).__name__
