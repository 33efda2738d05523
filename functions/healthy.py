"""The image's health command: whether the process beside it answers /healthz on PORT.

Kubernetes has probes of its own; this is for compose and plain Docker. Needs only Python itself.
"""

import http.client
import os
import sys

connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("PORT", "8080")), timeout=4)
try:
    connection.request("GET", "/healthz")
    status = connection.getresponse().status
except (OSError, http.client.HTTPException) as error:
    sys.exit(f"/healthz: {error}")
sys.exit(0 if status == 200 else f"/healthz: {status}")
