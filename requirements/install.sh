#!/usr/bin/env bash
# Sets up the virtual environment $1 on a machine without a GPU, from the pinned lists beside this file.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
[ -x "$venv/bin/python" ] || "$PYTHON" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps)

python_version=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
echo "Installing torch, vLLM for CPU and the tools into $venv (Python $python_version; a few minutes the first time) ..."
if [ "$python_version" = 3.11 ]; then
  torch=(--require-hashes -r requirements/torch.txt)
else
  echo "The hash of torch's CPU build is known for Python 3.11 only; installing torch 2.13.0+cpu for $python_version by version."
  torch=("torch==2.13.0+cpu")
fi
if ! "${pip[@]}" "${torch[@]}"; then
  echo "pip found no CPU build of torch 2.13.0: let pip's configuration (extra-index-url or find-links) name a place that has it." >&2
  exit 1
fi
"${pip[@]}" --require-hashes -r requirements/cpu.txt
"${pip[@]}" --no-build-isolation --no-index ./requirements/vllm-metadata -e .
"$venv/bin/python" -c 'import shutil, sysconfig; shutil.copy("palu_vllm_autoload.pth", sysconfig.get_path("purelib"))'
