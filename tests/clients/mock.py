"""A stand-in for the mocks of IMDS that projects keep in their tests, for `verify` to judge.

    python3 tests/clients/mock.py COMMAND ...       run a command, with the mock's address in $MOCK

It shows one recorded document at every api-version, any part of it as JSON, a token, and an empty list of events.
"""

import http.server
import json
import os
import subprocess
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
import imds  # noqa: E402  for the document only

ANSWERS = {
    "instance": imds.make_vm(),
    "identity/oauth2/token": {"access_token": "token", "expires_in": "3600", "expires_on": "9999999999",
                              "resource": "https://management.azure.com/", "token_type": "Bearer"},
    "scheduledevents": {"DocumentIncarnation": 1, "Events": []},
}


class Mock(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path, _, query = self.path.partition("?")
        name = path.replace("/metadata/", "", 1).strip("/")
        if self.headers.get("Metadata", "").lower() != "true":
            self.say(400, {"error": "Bad request. Required metadata header not specified"})
        elif "api-version=" not in query:
            self.say(400, {"error": "Bad request. api-version was not specified in the request"})
        elif name in ANSWERS:
            self.say(200, ANSWERS[name])
        else:
            try:
                node = ANSWERS
                for part in name.split("/"):
                    node = node[int(part) if isinstance(node, list) else part]
                self.say(200, node)
            except (KeyError, IndexError, ValueError, TypeError):
                self.say(404, {"error": "Not found"})

    def say(self, status, content):
        body = (content if isinstance(content, str) else json.dumps(content, separators=(",", ":"))).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = http.server.HTTPServer(("127.0.0.1", 0), Mock)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.exit(subprocess.call(sys.argv[1:], env=dict(os.environ, MOCK="http://127.0.0.1:%d" % server.server_address[1])))
