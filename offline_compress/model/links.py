"""A model directory is what is read, and nothing that its links lead to elsewhere."""

from pathlib import Path

from offline_compress.run.errors import CompressionError


def refuse_links_outside(directory: Path) -> None:
    """Raises CompressionError for a link in ``directory`` that leaves it; a hub's links into its blobs do not."""
    home = directory.resolve()
    if home.parent.name == "snapshots":
        home = home.parents[1]
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() and not path.resolve().is_relative_to(home):
            raise CompressionError(
                f"{path} is a link that leaves the model directory; put the file itself there, or remove the link."
            )
