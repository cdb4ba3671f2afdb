"""What the blocks of a page mean: shell, sessions with their output, Python, files."""

import doctest
import re
import subprocess
from pathlib import Path

from sybil import Region
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

SECONDS = 300
"""A block that takes longer has hung."""
FILES = ("yaml",)
"""Blocks that are written to the file which their first line, a comment, names."""
SHOWN = ("text",)
"""Blocks that are no code; one whose first line names a file is written to it all the same."""
NAME = re.compile(r"# ([\w./-]+\.\w+)$", re.MULTILINE)


def run_shell(example):
    """Run a block of commands; the first that fails ends it."""
    code, output = _bash(f"set -euo pipefail\n{example.parsed}")
    assert code == 0, f"exit code {code} of\n{example.parsed}\n{output}"


def run_session(example):
    """Run the commands after `$`, and compare what they print, to both streams, with the page."""
    code = 0
    for command, expected in _split(example.parsed):
        code, output = _bash(f"(exit {code})\n{command}")
        wanted, found = (_plain(text) for text in (expected, output))
        same = doctest.OutputChecker().check_output(wanted, found, doctest.ELLIPSIS)
        assert same, f"$ {command}\nthe page has\n{wanted}\nprinted was\n{found}"


def write_file(example):
    """Write a block to the file that its first line names."""
    name = NAME.match(example.parsed)
    if name is None:
        assert example.region.lexemes["arguments"] in SHOWN, "the first line is not `# FILE`"
        return
    Path(name[1]).write_text(example.parsed)


def refuse(example):
    """Fail for a block in a language that nothing runs."""
    raise AssertionError(
        f"nothing runs {example.parsed!r}: mark the block with skip: next, or text"
    )


class OtherBlocks:
    """Find the fenced blocks whose language no other parser takes."""

    def __init__(self, languages):
        self.known = {*languages}
        self.lexer = RawFencedCodeBlockLexer(re.compile(r"(?P<language>[^\n]*)$\n", re.MULTILINE))

    def __call__(self, document):
        """Yield their regions."""
        for block in self.lexer(document):
            language = block.lexemes["language"].strip()
            # Directives of MyST; code-block is not used.
            if language not in self.known and not re.fullmatch(r"\{(?!code)[\w:-]+\}.*", language):
                yield Region(block.start, block.end, language, refuse)


def _bash(script):
    found = subprocess.run(
        ["bash", "-c", script],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=SECONDS, check=False,
    )  # fmt: skip
    return found.returncode, found.stdout


def _split(session):
    """Return pairs of a command, which may go on in lines after `> `, and its output."""
    pairs = []
    for line in session.splitlines():
        if line.startswith("$ "):
            pairs.append([line[2:], []])
        elif line.startswith("> ") and not pairs[-1][1]:
            pairs[-1][0] += "\n" + line[2:]
        else:
            pairs[-1][1].append(line)
    return [(command, "\n".join(lines)) for command, lines in pairs]


def _plain(text):
    """Return a text without blanks at the ends of lines, and without empty lines around it."""
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n") + "\n"
