"""What stands before every address: who may ask, and what a browser is told about each answer.

There is no login, so a page of somebody else's must not be able to use the service through its reader's browser: not
under a name that it has pointed at this machine (DNS rebinding), and not from its own address.
"""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.service.limits import Refused, error_content

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Gate:
    """Refuses what comes under a foreign name or from a foreign page, and adds `HEADERS` to every answer.

    Args:
        app: what is behind the gate.
        allowed_hosts: names under which the service is asked, beside `localhost` and the address of any machine: a
            name can be pointed anywhere by its owner, an address cannot.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Collection[str] = ()) -> None:
        self.app = app
        self.allowed_hosts = {"localhost", *(name.lower() for name in allowed_hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let it through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(Headers(scope=scope))
        except Refused as error:
            await JSONResponse(error_content(error), error.status)(scope, receive, send_with_headers)
        else:
            await self.app(scope, receive, send_with_headers)

    def _check(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            known = ", ".join(sorted(self.allowed_hosts))
            remedy = f"use its address or one of: {known}; `rnnlm serve --allowed-host NAME` allows another"
            raise Refused(421, "this service is not known under that name", ", ".join(hosts), remedy)
        for origin in headers.getlist("origin"):
            # A proxy that speaks https to the browser speaks http to us, of the same host.
            if origin.lower() not in {f"{scheme}://{hosts[0].lower()}" for scheme in ("http", "https")}:
                raise Refused(403, "a page of another address may not ask", origin, "open this service's own page")
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            raise Refused(403, "a page of another address may not ask", "", "open this service's own page")

    def _is_ours(self, host: str) -> bool:
        try:
            parts = urlsplit(f"//{host}")
            name, _ = parts.hostname or "", parts.port
            if parts.netloc != host or "@" in host:
                return False
            if name in self.allowed_hosts:
                return True
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
