"""Settings of a judge behind a server, for the commands that can ask one."""

from __future__ import annotations
