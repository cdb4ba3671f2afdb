"""Training metrics for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cosmoflow.errors import ConfigError
from cosmoflow.storage.urls import local_path

FOLDER = "tensorboard"


def open_board(out: str, wanted: bool) -> Callable[[Mapping[str, float]], None]:
    """Return a function that logs the metrics of a step in a folder inside the model folder.

    Parameters
    ----------
    out : str
        The model folder.
    wanted : bool
        Whether to log; if false, the function does nothing.

    Raises
    ------
    ConfigError
        The folder is not on this machine.
    """
    if not wanted:
        return lambda metrics: None
    folder = local_path(out)
    if folder is None:
        raise ConfigError(
            "TensorBoard's files are written to a local folder",
            where="train.tensorboard",
            value=out,
            remedy="leave it out: history.csv has the same numbers",
        )
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(folder / FOLDER))

    def note(metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if name != "step":
                writer.add_scalar(name, value, int(metrics["step"]))
        writer.flush()

    return note
