"""Run every benchmark: ``make bench MODEL=model.onnx DATA=tiny-imagenet-subset.zip``."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Run them one after the other, so that none disturbs another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("model.onnx"))
    parser.add_argument("--data", required=True)
    arguments = parser.parse_args()
    if not arguments.model.is_file():
        sys.exit(f"error: {arguments.model} does not exist; make one with deeprank-export, or name it with --model.")
    for script in ("cold_query.py", "folder_embedding.py"):
        command = [sys.executable, str(HERE / script), "--model", str(arguments.model), "--data", arguments.data]
        subprocess.run(command, check=True)
    subprocess.run([sys.executable, str(HERE / "training_throughput.py"), "--data", arguments.data], check=True)


if __name__ == "__main__":
    main()
