"""Check that the archives of a release have the files that git has, and no others.

python .ci/check_archives.py dist/cosmoflow-0.1.0-py3-none-any.whl dist/cosmoflow-0.1.0.tar.gz
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_BYTES = 20_000_000
"""Largest archive; the shipped models are 18 MB before compression."""


def tracked() -> set[str]:
    """Return the files of the checkout that git has or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}


def expected(archive: Path, files: set[str]) -> tuple[set[str], set[str]]:
    """Return the names that an archive has and those that it should have, without its metadata."""
    if archive.suffix == ".whl":
        found = {name for name in zipfile.ZipFile(archive).namelist() if ".dist-info/" not in name}
        package = {name for name in files if name.startswith("cosmoflow/")}
        presets = {
            name.replace("configs/", "cosmoflow/config/presets/", 1)
            for name in files
            if name.startswith("configs/")
        }
        return found, package | presets
    with tarfile.open(archive) as content:
        names = [one.name for one in content.getmembers() if one.isfile()]
    return {name.split("/", 1)[1] for name in names} - {"PKG-INFO"}, files


def main() -> None:
    """Check all archives and print their sizes."""
    files, wrong = tracked(), False
    for archive in map(Path, sys.argv[1:]):
        found, wanted = expected(archive, files)
        size = archive.stat().st_size
        print(f"{archive.name}: {len(found)} files, {size / 1e6:.1f} MB")
        for name in sorted(wanted - found):
            print(f"  missing: {name}")
        for name in sorted(found - wanted):
            print(f"  not in git: {name}")
        wrong |= found != wanted or size > MOST_BYTES
    sys.exit(wrong)


if __name__ == "__main__":
    main()
