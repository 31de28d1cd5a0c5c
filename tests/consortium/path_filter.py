"""A path filter as server/path-filter.nginx.conf describes, which also writes down what passes."""

from __future__ import annotations

import http.client
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class PathFilter:
    """TLS in front of the SuperLink that forwards /v1/fleet/ and /health and refuses everything else.

    Attributes:
        passed: every forwarded request and reply body, in the clear.
        paths: every path that was asked for, with the status of the answer.
    """

    def __init__(self, port: int, superlink_port: int, certificates: Path) -> None:
        self.passed: list[bytes] = []
        self.paths: list[tuple[str, int]] = []
        outgoing = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
        incoming = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        incoming.load_cert_chain(certificates / "filter.pem", certificates / "filter.key")
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self._body()
                if not self.path.startswith("/v1/fleet/") and self.path != "/health":
                    self._answer(404, {}, b"")
                    return
                recorder.passed.append(body)
                connection = http.client.HTTPSConnection("localhost", superlink_port, context=outgoing, timeout=120)
                try:
                    kept = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
                    connection.request(self.command, self.path, body, kept)
                    reply = connection.getresponse()
                    content = reply.read()
                    recorder.passed.append(content)
                    headers = {k: v for k, v in reply.getheaders() if k.lower() not in _HOP_BY_HOP}
                    self._answer(reply.status, headers, content)
                except OSError:
                    self._answer(502, {}, b"")
                finally:
                    connection.close()

            do_GET = do_POST

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
                recorder.paths.append((self.path, status))
                self.send_response_only(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *arguments: object) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def finish_request(self, request: object, client_address: object) -> None:
                """TLS in the thread of the connection, so that a slow one holds nobody up."""
                with incoming.wrap_socket(request, server_side=True) as secured:  # type: ignore[call-overload]
                    super().finish_request(secured, client_address)  # type: ignore[arg-type]

            def handle_error(self, request: object, client_address: object) -> None:
                """A node that was killed breaks its connection; that is what these tests do."""

        self._server = Server(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more connections."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


_HOP_BY_HOP = {"connection", "keep-alive", "content-length", "transfer-encoding", "host", "date", "server"}
