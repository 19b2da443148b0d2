"""Bytes from an address, with limits: on their number, on time and slowness, on where a redirect may lead.

A downloader for `pooch`, which keeps the file under a temporary name until it is complete. What may pass (no
connection, an overloaded server, a body cut short) is tried again from the start; a second body is never appended
to the part of a first.
"""

import random
import socket
import threading
import time
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MOST_BYTES = 16 << 30
MOST_REDIRECTS = 3
ATTEMPTS = 3
PAUSE_SECONDS = 0.5
"""Before the second attempt, doubled before each further one, and half as much more or less by chance."""
TIMEOUT_SECONDS = 30.0
"""How long a server may say nothing."""
PATIENCE_SECONDS = 60.0
FEWEST_BYTES_PER_SECOND = 10_000
"""What a server must reach on average once patience is over: a drip of bytes would never time out."""
MOST_SECONDS = 6 * 3600.0
"""How long all attempts may take together, however fast the bytes come."""
CHUNK = 1 << 14
WATCH_SECONDS = 0.1
OVERLOADED = (408, 429, 500, 502, 503, 504)
"""What servers answer when the same question may have another answer a moment later."""
INNER_NAMES = ("localhost", "local", "internal", "intranet", "lan", "home", "corp", "home.arpa")
_HOLD_IPV4 = (IPv6Network("::/96"), IPv6Network("64:ff9b::/96"))
"""IPv6 networks whose last 32 bits are an IPv4 address that Python does not look at by itself."""


class RefusedError(ValueError):
    """A transfer that was broken off, and why, in a few words."""


class SlowError(TimeoutError):
    """A transfer that took too long, in a few words."""


class Bounded:
    """Downloads at most `most_bytes` and follows at most three redirects, none from https to http or inwards.

    `verified` says that the bytes will be compared with a digest: only then may they come over plain http from
    another machine.
    """

    def __init__(self, most_bytes: int = MOST_BYTES, verified: bool = True) -> None:
        self.most_bytes, self.verified = most_bytes, verified

    def __call__(self, url: str, output_file: Path | str, _: Any) -> None:
        """Write what `url` holds to `output_file` (the signature that pooch calls).

        Raises `RefusedError`, `SlowError`, or what `requests` raises.
        """
        import requests

        deadline = time.monotonic() + MOST_SECONDS
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _Transfer(url, Path(output_file), self).carry_out(deadline)
                return
            except requests.RequestException as error:
                if attempt == ATTEMPTS or not _may_pass(error):
                    raise
            # Jitter: many that failed together shall not come back together.
            pause = PAUSE_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
            time.sleep(min(pause, max(deadline - time.monotonic(), 0)))


class _Transfer:
    """One attempt, in a thread of its own: whoever waits can give it up at any moment.

    The library's own timeout begins anew with every byte, in the headers as well, and so never ends a drip.
    """

    def __init__(self, url: str, target: Path, limits: Bounded) -> None:
        self.url, self.target, self.limits = url, target, limits
        self.started = time.monotonic()
        self.written = 0
        self.response: Any = None
        self.given_up = False
        self.over = threading.Event()
        self.error: BaseException | None = None

    def carry_out(self, deadline: float) -> None:
        """Write the file, or raise what went wrong."""
        threading.Thread(target=self._run, daemon=True).start()
        try:
            while not self.over.wait(WATCH_SECONDS):
                self._check_pace(deadline)
        finally:
            self._give_up()
        if self.error is not None:
            raise self.error

    def _check_pace(self, deadline: float) -> None:
        now = time.monotonic()
        seconds = now - self.started
        if now > deadline:
            raise SlowError(f"not done after {MOST_SECONDS:,.0f} s, {self.written:,} bytes")
        if seconds > PATIENCE_SECONDS and self.written < FEWEST_BYTES_PER_SECOND * seconds:
            raise SlowError(f"too slow, {self.written:,} bytes in {seconds:.0f} s")

    def _give_up(self) -> None:
        """End the thread at its next byte, or now if it is reading a body."""
        self.given_up = True
        response = self.response
        if response is None or self.over.is_set():
            return
        try:
            response.raw.shutdown()
        except (OSError, RuntimeError, ValueError):  # it has come to its end in this moment
            return

    def _run(self) -> None:
        try:
            self._write()
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            self.error = error
        finally:
            if self.response is not None:
                self.response.close()
            self.over.set()

    def _meet(self, response: Any, **_: Any) -> None:
        """Know each answer as soon as its headers are there: a redirect that is no address raises before it returns."""
        self.response = response

    def _write(self) -> None:
        import requests

        with requests.Session() as session:
            session.hooks["response"].append(self._meet)
            response = self._answer(session)
            response.raise_for_status()
            with self.target.open("wb") as out:
                for part in response.iter_content(CHUNK):
                    if self.given_up:
                        return
                    self.written += len(part)
                    if self.written > self.limits.most_bytes:
                        raise RefusedError(f"more than {self.limits.most_bytes:,} bytes")
                    out.write(part)

    def _answer(self, session: Any) -> Any:
        """Return the answer that is no redirect any more."""
        # Some hosts refuse Python's default user agent.
        more: dict[str, Any] = {"headers": {"User-Agent": "rnnlm/0.1"}, "timeout": TIMEOUT_SECONDS, "stream": True}
        url = self.url
        for _ in range(MOST_REDIRECTS + 1):
            response = session.get(url, allow_redirects=False, **more)
            if response.next is None:
                return response
            response.close()
            target = response.next.url
            _check_redirect(url, target, self.limits.verified)
            url = target
        raise RefusedError(f"more than {MOST_REDIRECTS} redirects")


def _may_pass(error: Any) -> bool:
    """Say whether a failure is one that may be gone a moment later."""
    import requests

    if isinstance(error, requests.HTTPError):
        return error.response is not None and error.response.status_code in OVERLOADED
    kinds = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    return isinstance(error, kinds) and not isinstance(error, requests.exceptions.SSLError)


def _check_redirect(source: str, target: str, verified: bool = True) -> None:
    before, after = urlsplit(source), urlsplit(target)
    if after.scheme not in ("http", "https") or (before.scheme == "https" and after.scheme == "http"):
        raise RefusedError(f"redirects to {after.scheme}")
    if _is_inner(after.hostname or "") and not _is_inner(before.hostname or ""):
        raise RefusedError("redirects to an address of this network")
    if after.scheme == "http" and not verified and not is_loopback(after.hostname or ""):
        raise RefusedError("redirects to plain http, and no digest is given")


def is_loopback(host: str) -> bool:
    """Whether a host, as written, is this machine."""
    address = _address(host)
    if address is not None:
        return address.is_loopback
    return _ends_in(host, ("localhost",))


def _is_inner(host: str) -> bool:
    """Whether a host, as written, is this machine or one of its network."""
    address = _address(host)
    if address is not None:
        return not address.is_global
    return "." not in host.rstrip(".") or _ends_in(host, INNER_NAMES)


def _ends_in(host: str, names: tuple[str, ...]) -> bool:
    return f".{host.rstrip('.').lower()}".endswith(tuple(f".{name}" for name in names))


def _address(host: str) -> IPv4Address | IPv6Address | None:
    """Return the address that a host is, in any spelling that connects to it (`0x7f.1`, `2130706433`), or None."""
    host = host.rstrip(".")
    try:
        address = ip_address(host)
    except ValueError:
        try:
            return IPv4Address(socket.inet_aton(host))
        except (OSError, ValueError):
            return None
    if isinstance(address, IPv4Address):
        return address
    if any(address in network for network in _HOLD_IPV4) and int(address) > 1:  # but `::` and `::1`
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
