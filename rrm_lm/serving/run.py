"""`rrm-lm serve`: load the models, check them, and serve until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import socket

import uvicorn

from rrm_lm.errors import ConfigError
from rrm_lm.serving.app import create_app
from rrm_lm.serving.checks import check_app
from rrm_lm.serving.models import load_models
from rrm_lm.settings.serving import ServeArguments

logger = logging.getLogger(__name__)


def serve(args: ServeArguments) -> int:
    """Serve until a signal; then answer what has arrived. Returns the exit code.

    Raises:
        ConfigError: The address is in use, or the token is not set.
        ModelError, CheckpointError: A model cannot be loaded, or its rewards differ from those at saving.
    """
    token = args.token()
    with _listening(args) as listener:
        models = load_models(args)
        app = create_app(models, args, token)
        if args.self_check:
            asyncio.run(check_app(app, models, token))
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=args.drain_timeout
        )
        host, port = listener.getsockname()[:2]
        address = f"[{host}]" if ":" in host else host
        logger.info("serving %s on http://%s:%d; /docs lists the addresses", ", ".join(models), address, port)
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:  # uvicorn passes the signal on after it has answered the open requests
            logger.info("stopped; all open requests were answered")
    return 0


def _listening(args: ServeArguments) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
        return socket.create_server((args.host, args.port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"The server cannot listen on {args.host}, port {args.port}: {error.strerror or error}",
            where="host and port",
            remedy="choose another port, or 0 for a free one",
        ) from error
