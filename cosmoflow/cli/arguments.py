"""Arguments shared by several commands."""

from __future__ import annotations

from typing import Annotated

import typer

Particles = Annotated[
    str,
    typer.Argument(metavar="PARTICLES", help="A particle store or a snapshot of another code."),
]
Fields = Annotated[str, typer.Argument(metavar="FIELDS", help="A fields store.")]
Truth = Annotated[str, typer.Argument(metavar="TRUTH", help="Fields with density and velocity.")]
Predictions = Annotated[
    list[str],
    typer.Argument(metavar="PREDICTION...", help="Fields from `infer`, or NAME=FIELDS."),
]
Url = Annotated[str, typer.Argument(metavar="URL", help="A store, model or snapshot.")]
Out = Annotated[
    str, typer.Argument(metavar="OUT", help="The output: a path, s3://, gs://, az:// or file://.")
]
