"""Check an installed wheel against the checkout: it must contain every tracked file of `jpeft/`, byte for byte.

Run:  python scripts/check_wheel.py DIRECTORY          after `pip install --target DIRECTORY`
"""

import subprocess
import sys
from pathlib import Path


def differing(checkout: Path, installed: Path) -> list[str]:
    """Names of tracked files under `jpeft/` that are missing from the installed package or differ there."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "jpeft"], cwd=checkout, capture_output=True, text=True, check=True
    )
    names = [name for name in listed.stdout.split("\0") if name]
    assert names, f"git knows no file of {checkout / 'jpeft'}"
    return [
        name
        for name in names
        if not (installed / name).is_file() or (installed / name).read_bytes() != (checkout / name).read_bytes()
    ]


def main() -> int:
    checkout, installed = Path(__file__).parents[1], Path(sys.argv[1])
    found = differing(checkout, installed)
    for name in found:
        print(f"not in the wheel, or not as here: {name}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
