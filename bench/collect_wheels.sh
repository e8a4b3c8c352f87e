#!/usr/bin/env bash
# Fetches what bench/on_gpu.sh installs on a machine without a network: bench/collect_wheels.sh [FOLDER, default wheels]
# For Python 3.12 on x86-64 Linux. That machine has torch, torchvision, numpy, and transformers with what it needs.
set -euo pipefail
folder=${1:-wheels}
mkdir -p "$folder"
target=(--only-binary=:all: --python-version 3.12 --implementation cp)
for platform in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
  target+=(--platform "${platform}_x86_64")
done
python -m pip download -q "${target[@]}" -d "$folder" \
  pytest pytest-benchmark pytest-timeout pydantic typer rich pillow matplotlib tqdm pyyaml pybind11 cmake ninja 'setuptools>=77'
python -m pip download -q "${target[@]}" --no-deps -d "$folder" \
  timm safetensors accelerate zennit==0.5.1 captum==0.9.0 torch-pruning==1.6.1
python -m pip wheel -q --no-deps -w "$folder" lxt==2.1 # published as source only
rm -f "$folder"/numpy-*.whl                            # torch's own is there, and two versions would not go together
du -sh "$folder"
