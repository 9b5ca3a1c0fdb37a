"""Run every benchmark of this folder, one after another: `make bench`. Run nothing else on the machine."""

import subprocess
import sys
from pathlib import Path

NOT_BENCHMARKS = {"run.py", "measure.py", "tables.py", "imagenet.py"}


def main() -> int:
    """Run each script in a separate process; return 1 if any failed."""
    folder = Path(__file__).parent
    failed = []
    for script in sorted(path for path in folder.glob("*.py") if path.name not in NOT_BENCHMARKS):
        print(f"\n== {script.name}", flush=True)
        if subprocess.run([sys.executable, str(script)], check=False).returncode:
            failed.append(script.name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
