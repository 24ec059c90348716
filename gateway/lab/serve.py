"""The lab's embedded servers, all in one process of the machine ``internet``.

``python -m gateway.lab.serve DIRECTORY`` listens on every address for HTTP, HTTPS
and the stream servers, and on the topology's addresses for SOCKS. The certificate that it
shows is new, and left in DIRECTORY. It writes one JSON object a line:
``{"event": "ready"}`` when all listen, and what each SOCKS server was asked for.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from functools import partial
from pathlib import Path

from gateway.lab import certificate, http_server, stream_servers
from gateway.lab.certificate import Certificate
from gateway.lab.socks_server import SocksServer
from gateway.lab.topology import DOMAIN, Topology

HTTP_PORT = 80
HTTPS_PORT = 443
ECHO_PORT = 7
BANNER_PORT = 22
HALF_CLOSE_PORT = 9000
STREAMS = {
    ECHO_PORT: stream_servers.echo,
    BANNER_PORT: stream_servers.banner,
    HALF_CLOSE_PORT: stream_servers.half_close,
}
ANY = ("0.0.0.0", "::")
#: The SOCKS servers of the topology that are started here.
UPSTREAMS = ("home", "work")


def record(event: str, **details: object) -> None:
    """One line of the record."""
    print(json.dumps({"event": event, **details}), flush=True)


async def serve(topology: Topology, shown: Certificate) -> None:
    """Start all servers, then run until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    servers = []
    tls = shown.context()
    for host in ANY:
        await http_server.start(host, HTTP_PORT)
        await http_server.start(host, HTTPS_PORT, tls)
        for port, handler in STREAMS.items():
            servers.append(await stream_servers.start(handler, host, port))
    for name in UPSTREAMS:
        upstream = topology.upstreams[name]
        told = partial(record, server=upstream.addresses.ipv4)
        server = SocksServer(upstream, told, topology.names)
        servers.append(await server.start())
    record("ready")
    await stop.wait()


if __name__ == "__main__":
    asyncio.run(serve(Topology.load(), certificate.make(Path(sys.argv[1]), [f"*.{DOMAIN}"])))
