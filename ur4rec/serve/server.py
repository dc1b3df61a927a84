"""Runs the page's server until it is interrupted."""

import importlib.util
import socket
from collections.abc import Callable

from ur4rec.errors import ConfigurationError
from ur4rec.runs.directory import RunDirectory
from ur4rec.runs.recommender import Recommender

HOST = "127.0.0.1"
"""This machine alone: what a run holds is nobody else's business."""


def serve_run(
    directory: RunDirectory,
    port: int,
    ready: Callable[[str, str], None] = lambda address, checkpoint: None,
    *,
    memory: int | str | None = None,
    checkpoint: str | None = None,
) -> None:
    """Serve the page of a run until Ctrl-C.

    Args:
        directory: The run.
        port: The port of 127.0.0.1; 0 is any that is free.
        ready: Called with the page's address, as soon as it can be opened, and with the name of the checkpoint.
        memory: Bytes that scores may take at once; None is as the run has it.
        checkpoint: "best", "latest" or "refit"; None is that of the refit where it has ended, else the best.

    Raises:
        AlternatorError: The extra is not installed, the port is taken, or the run cannot recommend.
    """
    missing = [package for package in ("starlette", "uvicorn") if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigurationError(
            f"serve needs {', '.join(missing)}, which is not installed; run: pip install 'adaptive-alternator[serve]'"
        )
    import uvicorn

    from ur4rec.serve.answers import Answers
    from ur4rec.serve.app import build_app

    with _listen(port) as listening:
        recommender = Recommender(directory, memory=memory, checkpoint=checkpoint)
        app = build_app(Answers(directory, recommender))
        server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, log_level="warning", lifespan="off", server_header=False)
        )
        address = f"http://{HOST}:{listening.getsockname()[1]}/"
        ready(address, recommender.checkpoint)  # it listens already: a browser that is early waits
        server.run(sockets=[listening])


def _listen(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise ConfigurationError(
            f"--port must be free and allowed, {port} is not ({error.strerror}); choose another, or 0 for any"
        ) from error
    return listening
