"""Answer images over HTTP with the newest release of a run. A new release is in use without a restart.

python examples/serve.py RUN_ID [BOOTSTRAP_SERVERS]
curl --data-binary @image.png http://127.0.0.1:8080/
"""

import json
import os
import sys
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from stream_learner import Follower, NoReleaseError, RejectError

PORT = int(os.environ.get("PORT", "8080"))
MAX_BYTES = 8 * 1024 * 1024


class Images(BaseHTTPRequestHandler):
    timeout = 10  # seconds that a client may be silent

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and len(length) < 10 and int(length) <= MAX_BYTES):
            return self.answer(413, {"error": f"send at most {MAX_BYTES} bytes, with Content-Length"})
        try:
            release = follower.latest()  # the release in use; this request keeps it
            predicted = release.predict([self.rfile.read(int(length))])
        except RejectError as error:
            return self.answer(400, {"error": error.message})
        except NoReleaseError as error:
            return self.answer(503, {"error": str(error)})
        probability = float(predicted.probabilities[0].max())
        sequence = release.described.sequence
        self.answer(200, {"label": predicted.labels[0], "probability": probability, "release": sequence})

    def answer(self, status, document):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


with Follower(*sys.argv[1:3]) as follower, ThreadingHTTPServer(("127.0.0.1", PORT), Images) as server:
    print(f"http://127.0.0.1:{server.server_port}/", flush=True)
    with suppress(KeyboardInterrupt):
        server.serve_forever()
