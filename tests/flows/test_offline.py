"""What was downloaded once is never asked for again."""

import hashlib
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tasks.progress import News


def test_a_second_run_asks_no_network(run: Callable[..., dict[str, Any]], text: Path, heard: list[News]) -> None:
    content = text.read_bytes()
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            """Keep the test's output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        digest = hashlib.sha256(content).hexdigest()
        address = f"http://127.0.0.1:{server.server_port}/book.txt#sha256={digest}"
        try:
            run(corpus__name=address)
            assert asked == ["/book.txt"]
            run(corpus__name=address)
            assert asked == ["/book.txt"]
        finally:
            server.shutdown()
            thread.join()
    again = run(corpus__name=address)  # nobody listens any more
    assert again["tasks"] == {"executed": 0, "cached": 9}
