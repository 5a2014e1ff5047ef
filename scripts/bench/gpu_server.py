"""vLLM's server for `gpu.py`: started as a child process on this machine's own address, and always ended."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_job import Load

HOST = "127.0.0.1"
# Server and trainer share one GPU. For 8B in bfloat16 the server needs 15 GiB for weights, 4 GiB for the keys and
# values of 64 sequences of 512 tokens, and some for activations and graphs; 0.3 of an H200 is 42 GiB, of a GPU with 80
# GB 24 GB. It takes its part before the trainer starts, and the trainer has the rest.
MEMORY_SHARE = 0.3
END_SECONDS = 20.0  # from asking the server to end until it is killed


class ServerError(Exception):
    """The server did not start."""


def find_vllm() -> str | None:
    """The vllm command next to this Python, or on the PATH."""
    own = Path(sys.executable).with_name("vllm")
    return str(own) if own.is_file() else shutil.which("vllm")


@contextlib.contextmanager
def served(vllm: str, folder: str, load: Load, rank: int, seconds: float) -> Iterator[str]:
    """Serve the model in a folder inside a ``with`` block; yields the address.

    Args:
        vllm: The command.
        folder: Of the model; the server's log is written there too.
        load: The workload whose prompts and responses the server has room for.
        rank: Of the LoRA adapters.
        seconds: Longest wait for the server to be ready.

    Raises ServerError: it cannot be run, ended, or was not ready in time.
    """
    port, log = free_port(), Path(folder) / "server.log"
    with _ended_by_sigterm():
        process = _started(command(vllm, folder, port, load, rank), log)
        try:
            _wait(process, port, log, seconds)
            yield f"http://{HOST}:{port}/v1"
        finally:
            end(process)


def _started(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command in a process group of its own. Raises ServerError: it cannot be run."""
    try:
        with log.open("wb") as out:
            return subprocess.Popen(
                words, env=environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
    except OSError as error:
        raise ServerError(f"vllm cannot be run: {error}") from error


def command(vllm: str, folder: str, port: int, load: Load, rank: int) -> list[str]:
    """How the server is started."""
    return [
        vllm, "serve", folder, "--host", HOST, "--port", str(port), "--dtype", "bfloat16", "--enable-lora",
        "--max-lora-rank", str(rank), "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm",
        "--gpu-memory-utilization", str(MEMORY_SHARE), "--max-model-len", str(load.longest + load.new_tokens),
        "--max-num-seqs", str(load.episodes),
    ]  # fmt: skip


def environment() -> dict[str, str]:
    """As the trainers' own, with adapters that are loaded while the server runs; it sends nothing anywhere."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return {
        **os.environ, "CUDA_VISIBLE_DEVICES": first, "HF_HUB_OFFLINE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
    }  # fmt: skip


def free_port() -> int:
    with socket.socket() as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])


def end(process: subprocess.Popen[Any]) -> None:
    """End a child and its process group: it is asked first, and after a while killed.

    Until the child's status is taken at the end, no other process can get its id.
    """
    limit = time.monotonic() + END_SECONDS
    with contextlib.suppress(OSError):  # an ended group, on systems other than Linux
        os.killpg(process.pid, signal.SIGTERM)
    while not has_ended(process) and time.monotonic() < limit:
        time.sleep(0.1)
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)  # whatever is left of the group
    process.wait()


def has_ended(process: subprocess.Popen[Any]) -> bool:
    """Whether a child has ended, without taking its status."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _wait(process: subprocess.Popen[Any], port: int, log: Path, seconds: float) -> None:
    """Return when the server is ready. Raises ServerError."""
    limit = time.monotonic() + seconds
    while not is_healthy(port):
        if has_ended(process):
            raise ServerError(f"vllm ended before it was ready: {_last(log)}")
        if time.monotonic() > limit:
            raise ServerError(f"vllm was not ready in {seconds:.0f} seconds: {_last(log)}")
        time.sleep(0.5)


def is_healthy(port: int) -> bool:
    """Whether the server's health endpoint answers with status 200."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://{HOST}:{port}/health", timeout=5.0) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def _last(log: Path) -> str:
    """The last line of the log; the lines before it are printed."""
    lines = log.read_text(errors="replace").strip().splitlines() or ["no message"]
    print("\n".join(lines[-30:]), file=sys.stderr, flush=True)
    return lines[-1]


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process by an exception, so that the server is ended too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
