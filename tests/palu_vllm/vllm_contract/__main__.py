"""``python -m tests.palu_vllm.vllm_contract WHEEL_OR_DIRECTORY [--json FILE]``: exit code 1 if a use is not granted."""

import argparse
import hashlib
import json
import re
import sys
import tempfile
import zipfile
from pathlib import Path

from benchmarks.common.provenance import provenance
from tests.palu_vllm.vllm_contract.check import complaint
from tests.palu_vllm.vllm_contract.sources import Sources
from tests.palu_vllm.vllm_contract.uses import ROOT, of_package


def judge(root: Path) -> dict[str, object]:
    """How many uses there are, and a sentence for each that the vLLM in ``root`` does not grant."""
    uses, sources = of_package(ROOT / "palu_vllm"), Sources(root)
    complaints = [found for use in uses if (found := complaint(use, sources))]
    return {
        "uses": len(uses),
        "names": len({str(use) for use in uses}),
        "complaints": complaints + lost_groups((ROOT / "setup.py").read_text(encoding="utf-8"), root),
    }


def lost_groups(setup: str, root: Path) -> list[str]:
    """Groups of entry points, keys ``"vllm.<group>"`` in ``setup``, that vLLM does not look into."""
    known = (root / "vllm" / "plugins" / "__init__.py").read_text(encoding="utf-8")
    groups = re.findall(r'"(vllm\.\w+)": ', setup)
    return [f"setup.py: the group {group} is not there" for group in groups if f'"{group}"' not in known]


def unpack(wheel: Path, directory: Path) -> None:
    """The Python files of a wheel; its libraries are not needed."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory, [name for name in archive.namelist() if name.endswith(".py")])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vllm", type=Path, metavar="WHEEL_OR_DIRECTORY")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    record = {"vllm": options.vllm.name}
    if options.vllm.is_dir():
        record |= judge(options.vllm)
    else:
        record["sha256"] = hashlib.sha256(options.vllm.read_bytes()).hexdigest()
        with tempfile.TemporaryDirectory() as directory:
            unpack(options.vllm, Path(directory))
            record |= judge(Path(directory))
    text = json.dumps(record | {"provenance": provenance()}, indent=1)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 1 if record["complaints"] else 0


if __name__ == "__main__":
    sys.exit(main())
