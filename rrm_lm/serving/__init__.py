"""`rrm-lm serve`: reward models behind the addresses that other projects' clients use. Needs the extra `serve`.

Every dialect has a prefix, because their paths collide. The client's text is scored with the tokens of training
(:mod:`rrm_lm.text.rendered`), in batches with the responses of other requests (:mod:`rrm_lm.serving.queue`).
"""

from rrm_lm.errors import ConfigError

try:
    import fastapi  # noqa: F401
    import prometheus_client  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as error:
    raise ConfigError(
        f"The server needs the package {error.name}, which is not installed", remedy="pip install 'rrm_lm[serve]'"
    ) from error
