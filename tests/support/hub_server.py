"""A small Hugging Face Hub in memory, for unmodified clients: what they ask for when they push and pull.

It has the Hub's part of a conversation, written down from what huggingface_hub, transformers and datasets send. It shows
that our side of it works; it is no proof of the rules of huggingface.co itself.

Large files come from a second address, as they do from the real Hub's content delivery network, and a token that is sent
there is an error.

    with HubServer(users={"hf_alice": User("alice", organisations=("org",))}) as hub:
        hub.url  # for HF_ENDPOINT
"""

import threading
from http.server import ThreadingHTTPServer

from hub_answers import StoreHandler
from hub_api import HubHandler
from hub_repositories import Hub


class HubServer(Hub):
    """The Hub and its store of large files, each at an address of its own, in threads of this process."""

    def __enter__(self) -> "HubServer":
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in (HubHandler, StoreHandler)]
        for server in self._servers:
            server.hub, server.daemon_threads = self, True
            threading.Thread(target=server.serve_forever, daemon=True).start()
        self.url, self.store_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)
        return self

    def __exit__(self, *raised) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()
