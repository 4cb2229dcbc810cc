"""Models as they are, with a KV codec: what a server of one checks before anything is loaded."""
