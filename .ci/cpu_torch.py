"""Let a CUDA build of torch load where CUDA is not installed, for work on the CPU.

    python .ci/cpu_torch.py ENVIRONMENT

PyPI has only CUDA builds of torch for Linux, and the libraries that they need to be loaded are
gigabytes. This puts a stand-in for each missing library beside torch's own. A stand-in has all
names that torch binds; each function does nothing but return 100, CUDA's error "no device". torch
then finds no GPU, as on any machine without one, and works on the CPU. Nothing is done where torch
loads as it is, such as a CPU build or an installed CUDA.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

NO_DEVICE = 100


def read(option: str, library: Path) -> str:
    """Return what readelf prints of a library."""
    command = ["readelf", "--wide", option, str(library)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def runs(python: Path, program: str, *arguments: str) -> bool:
    """Return whether a program runs in the environment."""
    command = [str(python), "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def find_missing(libraries: list[Path], python: Path) -> list[str]:
    """Return the libraries that torch's own are linked against and that do not load."""
    own = {library.name for library in libraries}
    needed: set[str] = set()
    for library in libraries:
        needed.update(re.findall(r"NEEDED.*\[(.*)\]", read("--dynamic", library)))
    load = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
    return [name for name in sorted(needed - own) if not runs(python, load, name)]


def list_names(libraries: list[Path], missing: list[str]) -> dict[str, dict[str, set[str]]]:
    """Return the names that each missing library must have, by version of the symbol.

    A symbol without a version may be in any library; the first has them all.
    """
    homes: dict[str, str] = {}
    undefined: set[str] = set()
    for library in libraries:
        file = ""
        for line in read("--version-info", library).splitlines():
            if found := re.search(r" File: (\S+)", line):
                file = found[1]
            elif file and (found := re.search(r" Name: (\S+) +Flags", line)):
                homes[found[1]] = file
        undefined.update(re.findall(r" UND (\S+)", read("--dyn-syms", library)))
    names: dict[str, dict[str, set[str]]] = {name: defaultdict(set) for name in missing}
    for symbol in undefined:
        name, _, version = symbol.partition("@")
        if version and homes.get(version) in names:
            names[homes[version]][version].add(name)
        elif not version and re.match(r"(__)?(cu|nccl|nvrtc|nvshmem)", name):
            names[missing[0]][""].add(name)
    return names


def build(target: Path, names: dict[str, set[str]], folder: Path) -> None:
    """Build the stand-in of one library."""
    source, script = folder / "names.s", folder / "names.map"
    labels = "".join(f".globl {one}\n{one}:\n" for group in names.values() for one in sorted(group))
    source.write_text(
        f'.section .note.GNU-stack,"",@progbits\n.text\n{labels} mov ${NO_DEVICE}, %eax\n ret\n'
    )
    versions = {version: group for version, group in names.items() if version}
    script.write_text(
        "".join(f"{name} {{ global: {'; '.join(group)}; }};\n" for name, group in versions.items())
    )
    command = ["gcc", "-shared", "-nostdlib", f"-Wl,-soname,{target.name}", "-o", str(target)]
    command += [f"-Wl,--version-script={script}"] if versions else []
    subprocess.run([*command, str(source)], check=True)


def main() -> None:
    """Make the stand-ins that the torch of an environment needs."""
    environment = Path(sys.argv[1])
    python = environment / "bin" / "python"
    if runs(python, "import torch"):
        return
    (folder,) = environment.glob("lib/python3*/site-packages/torch/lib")
    libraries = sorted(folder.glob("*.so*"))
    missing = find_missing(libraries, python)
    with tempfile.TemporaryDirectory() as scratch:
        for name, names in list_names(libraries, missing).items() if missing else ():
            build(folder / name, names, Path(scratch))
    subprocess.run([python, "-c", "import torch"], check=True)


if __name__ == "__main__":
    main()
