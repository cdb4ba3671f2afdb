"""Write the pages that are made from the code: commands, settings, presets, exit codes."""

import os
from pathlib import Path

# Help texts are not cut to the width of the terminal that builds the site.
os.environ["COLUMNS"] = "200"

import typer.main

from cosmoflow.cli.app import app as commands
from cosmoflow.config.reference import describe_section, list_settings

NOTE = "% Made by docs/_ext/generated.py: edits are lost.\n\n"


def write_pages(app):
    """Write the pages into `reference/made/`, those that changed only."""
    folder = Path(app.srcdir) / "reference" / "made"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"commands": command_page(), "settings": settings_page()}.items():
        page = folder / f"{name}.md"
        if not page.exists() or page.read_text() != NOTE + text:
            page.write_text(NOTE + text)


def command_page():
    """Return the sections of all commands: usage, arguments, options, example."""
    group = typer.main.get_command(commands)
    parent = group.make_context("cosmoflow", [], resilient_parsing=True)
    parts = []
    for name, command in group.commands.items():
        context = command.make_context(name, [], parent=parent, resilient_parsing=True)
        usage = " ".join(command.collect_usage_pieces(context))
        parts.append(f"({name}-command)=\n## {name}\n\n{_prose(command.help)}\n")
        parts.append(f"```text\ncosmoflow {name} {usage}\n```\n")
        records = [one.get_help_record(context) for one in command.get_params(context)]
        rows = {term: help_text for term, help_text in records if term not in COMMON}
        shared = len(records) - len(rows)
        if shared < len(COMMON):
            rows = dict(records)
        parts += [f"`{term}`\n: {_prose(help_text)}\n" for term, help_text in rows.items()]
        if shared == len(COMMON):
            parts.append("And the [common options](#common-options).\n")
        parts.append(f"{command.epilog.replace('Example: ', 'Example: `')}`\n")
    context = group.commands["paint"].make_context(
        "paint", [], parent=parent, resilient_parsing=True
    )
    common = dict(
        one.get_help_record(context) for one in group.commands["paint"].get_params(context)
    )
    head = ["(common-options)=\n## Common options\n\nOf all commands that compute:\n"]
    head += [f"`{term}`\n: {_prose(common[term])}\n" for term in COMMON]
    return "\n".join(head + parts)


COMMON = (
    "--config FILE",
    "--engine <auto|serial|ray>",
    "--address <str>",
    "--memory SIZE",
    "--resume",
    "--overwrite",
    "--dry-run",
    "--json",
    "-v, --verbose",
    "-q, --quiet",
    "-h, --help",
)
"""Options that most commands have with the same meaning: the page has them once."""


def settings_page():
    """Return one section for each section of the settings, with one entry a setting."""
    parts = ["## Top level\n"]
    last = ""
    for row in list_settings():
        section = row.key.rpartition(".")[0]
        if section != last:
            last = section
            parts.append(f"({section}-settings)=\n## {section}\n")
            parts.append(f"{_prose(describe_section(section))}\n")
        meaning = row.meaning[:1].upper() + row.meaning[1:] + "."
        facts = [f"type `{row.type}`", f"default `{row.default_text}`"]
        facts += [f"limits `{row.limits}`"] if row.limits else []
        facts += [f"unit {row.unit}"] if row.unit else []
        name = row.key.lower().replace("_", "-")
        parts.append(f"(setting-{name})=\n`{row.key}`\n: {_prose(meaning)}\n")
        parts.append(f"  {' · '.join(facts)}\n")
    return "\n".join(parts)


def _prose(text):
    """Return a text of the code with the characters that Markdown would read as its own escaped."""
    text = " ".join((text or "").split())
    # What stands in backquotes is code in both.
    pieces = text.split("`")
    for index in range(0, len(pieces), 2):
        for mark in "\\*_<>[]|":
            pieces[index] = pieces[index].replace(mark, f"\\{mark}")
    return "`".join(pieces)


def setup(app):
    """Write the pages before the sources are read."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
