"""What every request passes first: whose it is, and what every answer carries."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from gwsss_fast.serving.metrics import Metrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}


class Guard:
    """Refuses foreign hosts and pages of other sites, adds the headers of security, and counts.

    hosts: names by which the server may be called, or None for any. A page of another site that has its own name
    resolve to this machine is so kept out, as is one that sends a form here. endpoints: what is counted by its name.
    """

    def __init__(
        self,
        application: Application,
        metrics: Metrics,
        endpoints: Collection[str],
        hosts: Collection[str] | None,
        content_policy: str,
    ) -> None:
        self._application, self._metrics = application, metrics
        self._endpoints, self._hosts = endpoints, hosts
        policy = {**HEADERS, "content-security-policy": content_policy}
        self._headers = [(name.encode(), value.encode()) for name, value in policy.items()]

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        start, status = time.perf_counter(), 500

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self._application(scope, receive, guarded)
            else:
                await _refuse(guarded, *refusal)
        finally:
            endpoint = scope["path"] if scope["path"] in self._endpoints else "other"
            self._metrics.request(endpoint, status, time.perf_counter() - start)

    def _refusal(self, scope: MutableMapping[str, Any]) -> tuple[int, str] | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self._hosts is not None and host_name(host) not in self._hosts:
            return 400, "this server is called by another name"
        if scope["method"] in ("GET", "HEAD"):
            return None
        site, origin = headers.get(b"sec-fetch-site", "none"), headers.get(b"origin")
        if site not in ("none", "same-origin") or (origin is not None and urlsplit(origin).netloc != host):
            return 403, "a page of another site may not send images here"
        return None


def host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
    return name.lower()


async def _refuse(send: Send, status: int, message: str) -> None:
    body = json.dumps({"error": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
