"""An object store for tests, of moto: as a thread of theirs, or as a process of its own.

python -m object_stores PORT
"""

from __future__ import annotations

import logging
import sys

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, make_server

from leaderboard.stack.process import LOOPBACK


def object_store(port: int) -> BaseWSGIServer:
    """On loopback, listening (0: any port), not serving yet; everything is in memory."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    # One request at a time: moto looks whether a condition holds, and then writes.
    application = DomainDispatcherApplication(create_backend_app)
    return make_server(LOOPBACK, port, application, threaded=False)


if __name__ == "__main__":
    object_store(int(sys.argv[1])).serve_forever()
