"""List the licences of what an installed cosmoflow brings with it, and check that they allow it.

    python .ci/licences.py ENVIRONMENT            # write docs/licences.md
    python .ci/licences.py ENVIRONMENT --check    # fail for a licence, or an outdated page

cosmoflow is distributed under BSD-3-Clause and contains no code of its dependencies: they are
installed beside it. Permissive licences, and those whose copyleft ends at the library itself (LGPL,
MPL), allow that. All others fail, until somebody has read them and extends ``ALLOWED``.
"""

from __future__ import annotations

import re
import sys
from difflib import unified_diff
from importlib.metadata import Distribution, distributions
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "licences.md"

ALLOWED = {
    *("0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "HPND"),
    *("ISC", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Unlicense", "Zlib"),
    *("LGPL-3.0-or-later", "LicenseRef-LGPLv3-arxiv"),
}
"""Identifiers of SPDX; CAMB's is the LGPL with the request to cite it."""

NAMES = {
    r"apache.*2(\.0)?|apache software license": "Apache-2.0",
    r"(the )?mit( license)?": "MIT",
    r"(new|modified|3-clause) bsd( license)?|bsd[ -]3[ -]clause( license)?": "BSD-3-Clause",
    r"bsd license": "BSD",
    r"isc license.*": "ISC",
    r"mozilla public license 2\.0.*": "MPL-2.0",
    r"python software foundation license": "PSF-2.0",
    r".*lesser general public license.*3.*": "LGPL-3.0-or-later",
}
"""Names that packages use in place of an identifier, as patterns."""

READ = {"hdf5plugin": "MIT"}
"""Licences of packages whose metadata have none, from their LICENSE files."""

INTRODUCTION = """# Licences of the dependencies

cosmoflow is distributed under the BSD-3-Clause licence ([LICENSE](../LICENSE)). It contains no
code of the libraries below, which pip installs beside it. The list is made by `.ci/licences.py`
from the metadata of all packages that cosmoflow with its extras `readers` and `cluster` brings;
`.ci/lanes` checks that it is current and that each licence allows such use. CUDA builds of
torch also bring NVIDIA's libraries, and hdf5plugin compression filters, with their own licences.

| package | licence |
| --- | --- |
"""


def identify(name: str) -> str:
    """Return the identifier of a licence that a package names in words."""
    for pattern, identifier in NAMES.items():
        if re.fullmatch(pattern, name.strip(), re.IGNORECASE):
            return identifier
    return name.strip()


def licence_of(package: Distribution) -> str:
    """Return the licence of a package as an expression of SPDX, as far as its metadata tell."""
    metadata = package.metadata
    if package.name in READ:
        return READ[package.name]
    if expression := metadata.get("License-Expression"):
        return expression
    words = metadata.get("License") or ""
    if words and len(words) < 40 and "dual" not in words.lower():
        return identify(words)
    classifiers = [one for one in metadata.get_all("Classifier") or [] if one.startswith("License")]
    return " OR ".join(identify(one.rpartition("::")[2]) for one in classifiers) or "none given"


def is_allowed(expression: str) -> bool:
    """Return whether a licence allows the use: one of alternatives, or all that apply together."""
    parts = re.split(r" (AND|OR) ", re.sub(r"[()]| WITH \S+", "", expression))
    passed = [identify(part) in ALLOWED for part in parts[::2]]
    return any(passed) if set(parts[1::2]) == {"OR"} else all(passed)


def main() -> None:
    """Write or check the page."""
    (site,) = Path(sys.argv[1]).glob("lib/python3*/site-packages")
    found = {
        package.name: licence_of(package)
        for package in sorted(distributions(path=[str(site)]), key=lambda one: one.name.lower())
        if package.name not in {"cosmoflow", "pip"}
    }
    wrong = [f"{name}: {licence}" for name, licence in found.items() if not is_allowed(licence)]
    page = INTRODUCTION + "".join(f"| {name} | {licence} |\n" for name, licence in found.items())
    print(f"{len(found)} packages, {len(wrong)} with a licence that is not known to fit", *wrong)
    if "--check" not in sys.argv:
        PAGE.write_text(page)
    elif page != PAGE.read_text():
        print(*unified_diff(PAGE.read_text().splitlines(), page.splitlines(), n=0), sep="\n")
        sys.exit(f"docs/{PAGE.name} is not current: run python .ci/licences.py ENVIRONMENT")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
