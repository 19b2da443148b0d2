"""Bytes from an address, with limits: on their number, on slowness, on where a redirect may lead.

A downloader for `pooch`, which keeps the file under a temporary name until it is complete.
"""

import time
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MOST_BYTES = 16 << 30
MOST_REDIRECTS = 3
TIMEOUT_SECONDS = 30.0
"""How long a server may say nothing."""
PATIENCE_SECONDS = 60.0
FEWEST_BYTES_PER_SECOND = 10_000
"""What a server must reach on average once patience is over: a drip of bytes would never time out."""
CHUNK = 1 << 16


class RefusedError(ValueError):
    """A transfer that was broken off, and why, in a few words."""


class Bounded:
    """Downloads at most `most_bytes` and follows at most three redirects, none from https to http or inwards."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes

    def __call__(self, url: str, output_file: Path | str, _: Any) -> None:
        """Write what `url` holds to `output_file` (the signature that pooch calls).

        Raises `RefusedError`, or what `requests` raises.
        """
        import requests

        started = time.monotonic()
        written = 0
        with requests.Session() as session, _answer(session, url) as response, Path(output_file).open("wb") as out:
            response.raise_for_status()
            for part in response.iter_content(CHUNK):
                written += len(part)
                if written > self.most_bytes:
                    raise RefusedError(f"more than {self.most_bytes:,} bytes")
                seconds = time.monotonic() - started
                if seconds > PATIENCE_SECONDS and written < FEWEST_BYTES_PER_SECOND * seconds:
                    raise RefusedError(f"too slow, {written:,} bytes in {seconds:.0f} s")
                out.write(part)


def _answer(session: Any, url: str) -> Any:
    """Return the answer that is no redirect any more."""
    # Some hosts refuse Python's default user agent.
    more: dict[str, Any] = {"headers": {"User-Agent": "rnnlm/0.1"}, "timeout": TIMEOUT_SECONDS, "stream": True}
    for _ in range(MOST_REDIRECTS + 1):
        response = session.get(url, allow_redirects=False, **more)
        if response.next is None:
            return response
        response.close()
        target = response.next.url
        _check_redirect(url, target)
        url = target
    raise RefusedError(f"more than {MOST_REDIRECTS} redirects")


def _check_redirect(source: str, target: str) -> None:
    before, after = urlsplit(source), urlsplit(target)
    if after.scheme not in ("http", "https") or (before.scheme == "https" and after.scheme == "http"):
        raise RefusedError(f"redirects to {after.scheme}")
    if _is_inner(after.hostname or "") and not _is_inner(before.hostname or ""):
        raise RefusedError("redirects to an address of this network")


def _is_inner(host: str) -> bool:
    """Whether a host, as written, is this machine or one of its network."""
    try:
        return not ip_address(host).is_global
    except ValueError:
        return host == "localhost" or host.endswith((".localhost", ".local", ".internal"))
