"""HTTP/3 on both sides (aioquic): ``serve HOST CERTIFICATE KEY`` and ``fetch HOST BYTES``.

The client prints the SHA-256 of what it got.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import sys
from typing import cast

from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent

PORT = 443
#: Of which a body of any size is made.
PATTERN = bytes(range(256)) * 256


def body(size: int) -> bytes:
    return (PATTERN * (size // len(PATTERN) + 1))[:size]


class Server(QuicConnectionProtocol):
    """Answers ``/N`` with so many bytes."""

    _http: H3Connection | None = None

    def quic_event_received(self, event: QuicEvent) -> None:
        if self._http is None:
            self._http = H3Connection(self._quic)
        for answered in self._http.handle_event(event):
            if isinstance(answered, HeadersReceived):
                size = int(dict(answered.headers)[b":path"][1:])
                self._http.send_headers(answered.stream_id, [(b":status", b"200")])
                self._http.send_data(answered.stream_id, body(size), end_stream=True)
        self.transmit()


class Client(QuicConnectionProtocol):
    """Asks once, and takes a digest of the answer."""

    def __init__(self, *given: object, **named: object) -> None:
        super().__init__(*given, **named)  # type: ignore[arg-type]
        self._http = H3Connection(self._quic)
        self._digest = hashlib.sha256()
        self._done: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def fetch(self, host: str, size: int) -> str:
        stream = self._quic.get_next_available_stream_id()
        headers = {":method": "GET", ":scheme": "https", ":authority": host, ":path": f"/{size}"}
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        self._http.send_headers(stream, encoded, end_stream=True)
        self.transmit()
        return await self._done

    def quic_event_received(self, event: QuicEvent) -> None:
        for answered in self._http.handle_event(event):
            self._take(answered)

    def _take(self, answered: H3Event) -> None:
        if isinstance(answered, DataReceived):
            self._digest.update(answered.data)
            if answered.stream_ended:
                self._done.set_result(self._digest.hexdigest())


async def run_server(host: str, certificate: str, key: str) -> None:
    configuration = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN)
    configuration.load_cert_chain(certificate, key)
    await serve(host, PORT, configuration=configuration, create_protocol=Server)
    print("ready", flush=True)
    await asyncio.Event().wait()


async def run_client(host: str, size: int) -> None:
    configuration = QuicConfiguration(alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_NONE)
    configuration.max_data = configuration.max_stream_data = 8 << 20
    async with connect(host, PORT, configuration=configuration, create_protocol=Client) as client:
        print(await cast("Client", client).fetch(host, size), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(run_server(*sys.argv[2:5]))
    else:
        asyncio.run(run_client(sys.argv[2], int(sys.argv[3])))
