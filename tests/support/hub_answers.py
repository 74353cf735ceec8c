"""What both addresses of the Hub share: requests, answers, and files in parts or with faults; and the store of large files."""

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from hub_repositories import Hub, HubError


class Handler(BaseHTTPRequestHandler):
    """A request and its answer; what the answer is, classes derived from this say in `answer`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def handle_request(self) -> None:
        address = urlsplit(self.path)
        self.parts, self.query = [unquote(part) for part in address.path.strip("/").split("/")], parse_qs(address.query)
        self.body = self._read_body()
        self.hub.requests.append(f"{self.command} {address.path} {self.headers.get('Range', '')}".rstrip())
        try:
            self.answer()
        except HubError as error:
            self.send_json(error.body, error.status, **error.headers)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has gone

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send_json(self, content, status: int = 200, **headers: str) -> None:
        self.send_content(json.dumps(content).encode(), status, **headers)

    def send_content(self, content: bytes, status: int = 200, stop_after: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:stop_after])
            self.wfile.flush()

    def send_file(self, content: bytes, **headers: str) -> None:
        """A file or the part that `Range` asks for, with the fault that was ordered for it, if any."""
        status, fault = 200, self.hub.fault_for(self.path) if self.command == "GET" else None
        if fault and fault.kind == "flip":
            content = content[: fault.after] + bytes([content[fault.after] ^ 0x55]) + content[fault.after + 1 :]
        if fault and fault.kind == "cut":
            content = content[: fault.after]
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
            status, headers["Content-Range"] = 206, f"bytes {start}-{end}/{len(content)}"
            content = content[start : end + 1]
        self.send_content(content, status, stop_after=fault.after if fault and fault.kind == "drop" else None, **headers)
        if fault and fault.kind == "drop":
            self.close_connection = True


class StoreHandler(Handler):
    """Large files by their sha256, up and down."""

    def answer(self) -> None:
        if self.headers.get("Authorization"):
            self.hub.leaked_tokens += 1
            raise HubError(400, message="the token must not be sent to the store")
        sha256 = self.parts[-1]
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() != sha256:
                raise HubError(400, message="BadDigest")
            self.hub.contents[sha256] = self.body
            self.send_content(b"")
        elif sha256 in self.hub.contents:
            self.send_file(self.hub.contents[sha256], ETag=f'"{sha256}"')
        else:
            raise HubError(404)
