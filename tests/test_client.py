"""Room 5: the client, against the emulator and against servers that misbehave."""

import contextlib
import json
import os
import socket
import threading
import time
import unittest
from unittest import mock

import imds

JSON, HTML = "application/json; charset=utf-8", "text/html"
DOCUMENT = json.dumps(imds.complete(imds.VMS["linux"])).encode()


def reply(status=200, body=DOCUMENT, content_type=JSON, headers=()):
    lines = ["HTTP/1.1 %d X" % status, "Content-Type: " + content_type, "Content-Length: %d" % len(body)]
    return "\r\n".join(lines + list(headers) + ["", ""]).encode() + body


class Script:
    """A server that gives each connection in turn the next of its answers, the last one for ever.

    An answer is bytes; None resets the connection; a list of bytes is sent a piece every 0.2 s.
    """

    def __init__(self, *answers):
        self.answers, self.requests, self.stopping = list(answers), [], threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0)) if hasattr(socket, "create_server") else None
        if self.listener is None:
            self.listener = socket.socket()
            self.listener.bind(("127.0.0.1", 0))
            self.listener.listen(50)
        self.url = "http://127.0.0.1:%d" % self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.run)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        with contextlib.suppress(OSError):
            socket.create_connection(self.listener.getsockname()).close()
        self.thread.join()
        self.listener.close()

    def run(self):
        while not self.stopping.is_set():
            client, _ = self.listener.accept()
            with client, contextlib.suppress(OSError):
                client.settimeout(5)
                request = b""
                while b"\r\n\r\n" not in request:
                    chunk = client.recv(65536)
                    if not chunk:
                        break
                    request += chunk
                if not request:
                    continue
                self.requests.append(request.decode())
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                for piece in answer if isinstance(answer, list) else [answer or b""]:
                    client.sendall(piece)
                    if isinstance(answer, list) and self.stopping.wait(0.2):
                        break


class Patient:
    """A clock that only sleep moves."""

    def __init__(self):
        self.now, self.pauses = 0.0, []

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds

    def client(self, url, **settings):
        return imds.Client(url, clock=lambda: self.now, sleep=self.sleep, **settings)


class Get(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.vm = imds.Emulator(profile="scaleset").start()

    @classmethod
    def tearDownClass(cls):
        cls.vm.stop()

    def test_forms_of_a_path(self):
        for path in ("compute/vmId", "/compute/vmId/", "instance/compute/vmId", "/metadata/instance/compute/vmId",
                     "metadata/instance/compute/vmId", "http://169.254.169.254/metadata/instance/compute/vmId",
                     self.vm.url + "/metadata/instance/compute/vmId"):
            with self.subTest(path=path):
                self.assertEqual(self.vm.get(path), "1da71a3d-9b58-4520-abce-552bb5cfbd51")

    def test_nodes(self):
        self.assertEqual(self.vm.get("compute/tagsList/0"), {"name": "Department", "value": "IT"})
        self.assertEqual(len(self.vm.get("network/interface")), 2)
        self.assertEqual(self.vm.get(), self.vm.get("/metadata/instance"))
        self.assertEqual(sorted(self.vm.get("")), ["compute", "network"])

    def test_text(self):
        self.assertEqual(self.vm.get("network", format="text"), "interface/")
        self.assertEqual(self.vm.get("compute/zone", format="text"), "2")

    def test_what_the_client_formats_is_what_the_service_prints(self):
        for path in ("", "compute", "network/interface", "network/interface/0/ipv4", "compute/tags"):
            target = "/metadata/instance/%s?api-version=2021-02-01&format=text" % path
            self.assertEqual(self.vm.get(path, format="text", api_version="2021-02-01"), self.vm.get(target))

    def test_queries_go_as_they_are(self):
        query = "?api-version=2017-04-02"
        self.assertEqual(len(self.vm.get("/metadata/instance/compute" + query)), 11)
        self.assertEqual(len(self.vm.get("http://169.254.169.254/metadata/instance/compute" + query)), 11)
        self.assertEqual(len(self.vm.get("compute" + query)), 11)
        self.assertEqual(self.vm.get("/metadata/instance/compute/name" + query + "&format=text"), "web_1")
        self.assertEqual(len(self.vm.get("/metadata/versions")["apiVersions"]), 35)
        with self.assertRaises(imds.Refused) as caught:
            self.vm.get("/metadata/instance/compute/name" + query)
        self.assertEqual((caught.exception.status, caught.exception.body), (400, '{ "error": "Bad request" }'))
        self.assertTrue(caught.exception.url.endswith("/metadata/instance/compute/name" + query))

    def test_not_found(self):
        with self.assertRaises(KeyError) as caught:
            self.vm.get("compute/vmid")
        self.assertIn("did you mean 'compute/vmId'?", str(caught.exception))
        with self.assertRaises(imds.NotFound) as caught:
            self.vm.get("/metadata/nonsense?api-version=2021-02-01")
        self.assertEqual(caught.exception.status, 404)

    def test_api_version(self):
        self.assertEqual(len(self.vm.get("compute", api_version="2017-04-02")), 11)
        with self.assertRaises(imds.Refused) as caught:
            self.vm.get("compute", api_version="2030-01-01")
        self.assertIn("2025-04-07", str(caught.exception))

    def test_values_that_can_not_be_used(self):
        for call in (lambda: imds.get("x", endpoint="ftp://x"), lambda: imds.get("x", endpoint="127.0.0.1:80"),
                     lambda: imds.get("x", endpoint="http://"), lambda: imds.get("x", endpoint="http://x:abc"),
                     lambda: imds.get("x", endpoint="http://127.0.0.1:9 x"), lambda: self.vm.get("x", timeout=0),
                     lambda: self.vm.get("x", timeout=float("inf")), lambda: self.vm.get("x", deadline=float("nan")), lambda: self.vm.get("x", format="xml"),
                     lambda: self.vm.get("http://example.com/metadata/instance")):
            with self.assertRaises(ValueError):
                call()

    def test_endpoint_from_the_environment(self):
        with mock.patch.dict(os.environ, AZURE_IMDS_ENDPOINT=self.vm.url + "/"):
            self.assertEqual(imds.get("compute/name"), "web_1")
        with mock.patch.dict(os.environ, clear=True):
            self.assertEqual(imds.Client().endpoint, "http://169.254.169.254")

    def test_one_request_for_several_paths(self):
        with Script(reply()) as server:
            self.assertEqual(imds.Client(server.url).get_all(["compute/name", "compute/zone"]), ["avset2", "1"])
            self.assertEqual(len(server.requests), 1)


class Request(unittest.TestCase):
    def test_what_is_sent(self):
        with Script(reply()) as server:
            imds.get("compute/name", endpoint=server.url)
        lines = server.requests[0].split("\r\n")
        self.assertEqual(lines[0], "GET /metadata/instance?api-version=2025-04-07 HTTP/1.1")
        self.assertIn("Metadata: true", lines)
        self.assertEqual(sum(line.lower().startswith("metadata:") for line in lines), 1)

    def test_a_query_is_sent_as_it_is(self):
        with Script(reply()) as server:
            for path in ("/metadata/instance?api-version=2021-02-01", "/metadata?api-version=2017-04-02&format=text",
                         "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net"):
                imds.get(path, endpoint=server.url)
                self.assertEqual(server.requests[-1].split(" ")[1], path)

    def test_never_through_a_proxy(self):
        with imds.Emulator() as vm, Script(reply(502, b"proxy")) as proxy:
            variables = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"), proxy.url)
            with mock.patch.dict(os.environ, variables):
                before = dict(os.environ)
                self.assertEqual(vm.get("compute/name"), "avset2")
                self.assertEqual(dict(os.environ), before)
            self.assertEqual(proxy.requests, [])


class Negotiation(unittest.TestCase):
    def test_a_service_that_offers_older_versions(self):
        with imds.Emulator(versions=["2017-04-02", "2019-06-01"]) as vm:
            client = imds.Client(vm.url)
            self.assertIn("storageProfile", client.get("compute"))
            self.assertNotIn("tagsList", client.get("compute"))

    def test_it_is_remembered(self):
        lines = []
        with imds.Emulator(versions=["2019-06-01"], log=lines.append) as vm:
            client = imds.Client(vm.url)
            client.get()
            client.get()
        self.assertEqual(len(lines), 3)

    def test_a_service_of_2018(self):
        with imds.Emulator(as_of="2018") as vm:
            self.assertEqual(vm.get("compute/name"), "avset2")

    def test_not_with_a_version_of_ones_own(self):
        with imds.Emulator(as_of="2018") as vm, self.assertRaises(imds.NotFound):
            vm.get("compute/name", api_version="2021-02-01", deadline=1)


    def test_for_the_other_endpoints_too(self):
        with imds.Emulator(versions=["2021-12-13", "2020-10-01"], load_balancer=True) as vm:
            client = imds.Client(vm.url)
            self.assertIn("loadbalancer", client.get("/metadata/loadbalancer"))
            self.assertEqual(client.attested()[1]["vmId"], vm.instance["compute"]["vmId"])
            self.assertEqual(len(imds.Client(vm.url).snapshot()), 5)

    def test_a_refusal_is_passed_on_as_it_was(self):
        with imds.Emulator() as vm:
            with self.assertRaises(imds.NotFound) as caught:
                vm.get("/metadata/loadbalancer")
            self.assertIn("No load balancer metadata is found", caught.exception.body)

    def test_nonsense_on_offer(self):
        for offer in (b'["\\ud800"]', b'"abc"', b"[5]", b"{}", b"null", b"[" * 100000):
            with Script(reply(400, b'{"error":"x","newest-versions":%s}' % offer)) as server:
                with self.assertRaises(imds.Refused):
                    imds.get("compute", endpoint=server.url)


class Failures(unittest.TestCase):
    def ask(self, *answers, **settings):
        """The result or the error of a get, the pauses it made, and the number of requests."""
        patient = Patient()
        with Script(*answers) as server:
            try:
                result = patient.client(server.url, **settings).get("compute/name")
            except imds.Error as error:
                result = error
        return result, patient.pauses, len(server.requests)

    def test_patience(self):
        for first in (reply(408, b""), reply(410, b"<?xml", "text/xml"), reply(429, b"Too many requests", "text/plain"),
                      reply(500, b""), reply(503, b"<html>", HTML), reply(404, b'{ "error": "Not found" }'), None,
                      reply()[:-10], b"HTTP/1.1 200 OK\r\n"):
            with self.subTest(first=first and first[:20]):
                result, pauses, requests = self.ask(first, first, reply())
                self.assertEqual((result, len(pauses), requests), ("avset2", 2, 3))
                self.assertGreater(pauses[1], pauses[0])

    def test_no_patience(self):
        for answer, kind in (
            (reply(400, b'{ "error": "Bad request" }'), imds.Refused), (reply(403, b"{}"), imds.Refused),
            (reply(405, b"{}"), imds.Refused), (reply(302, b"", HTML, ["Location: http://x/"]), imds.NotIMDS),
            (reply(301, b"", JSON, ["Location: /metadata/instance"]), imds.NotIMDS),
            (reply(200, b"<html>Please log in</html>", HTML), imds.NotIMDS), (reply(404, b"<html>", HTML), imds.NotIMDS),
            (reply(200, b"{"), imds.NotIMDS), (reply(200, b"[]"), imds.NotIMDS), (reply(200, b"5"), imds.NotIMDS),
            (reply(200, b'{"a":1}'), imds.NotIMDS), (reply(200, b'{"compute":5}'), imds.NotIMDS),
            (reply(200, b"[" * 100000), imds.NotIMDS), (reply(200, b"compute/", "text/plain"), imds.NotIMDS),
            (reply(200, b"\xff\xfe", "application/octet-stream"), imds.NotIMDS),
            (b"SSH-2.0-OpenSSH_9.2\r\n", imds.NotIMDS), (b"\x15\x03\x01\x00\x02\x02\n\r\n\r\n", imds.NotIMDS),
            (b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 200 + b"\r\n", imds.NotIMDS),
            (reply(200, b'{"compute":"' + b"a" * 5000000 + b'"}'), imds.NotIMDS),
        ):
            with self.subTest(answer=answer[:60]):
                result, pauses, requests = self.ask(answer)
                self.assertIsInstance(result, kind)
                self.assertEqual((pauses, requests), ([], 1))
                if kind is imds.NotIMDS:
                    self.assertIn("what answers is not IMDS", str(result))

    def test_when_patience_ends(self):
        for answer, least, most in ((reply(429, b"{}"), 10, 20), (reply(500, b"{}"), 10, 20),
                                    (reply(410, b"{}"), 55, 70), (reply(404, b"{}"), 10, 20)):
            with self.subTest(answer=answer[:12]):
                result, pauses, _ = self.ask(answer)
                self.assertIsInstance(result, imds.Unavailable)
                self.assertGreater(sum(pauses), least)
                self.assertLess(sum(pauses), most)
        result, pauses, _ = self.ask(reply(410, b"{}"), deadline=5)
        self.assertLess(sum(pauses), 5)
        self.assertEqual((result.status, result.body), (410, "{}"))

    def test_the_deadline_is_for_all_requests_together(self):
        throttled = reply(429, b"{}")
        refusal = reply(400, b'{"newest-versions":["2017-04-02"]}')
        result, pauses, _ = self.ask(throttled, throttled, refusal, throttled, deadline=6)
        self.assertIsInstance(result, imds.Unavailable)
        self.assertLess(sum(pauses), 6)

    def test_a_message_is_one_line_that_no_terminal_obeys(self):
        result, _, _ = self.ask(reply(400, b"\x1b[31mboo\x07\r\nfoo"))
        self.assertTrue(str(result).isprintable())
        self.assertIn("boo? foo", str(result))

    def test_resets_for_ever(self):
        result, pauses, _ = self.ask(None)
        self.assertIsInstance(result, imds.Unreachable)
        self.assertIsInstance(result, OSError)
        self.assertLess(sum(pauses), 20)

    def test_nobody_there(self):
        begun = time.monotonic()
        with self.assertRaises(imds.Unreachable) as caught:
            imds.get("compute/name", endpoint="http://127.0.0.1:9")
        self.assertLess(time.monotonic() - begun, 4)
        self.assertIn("nobody answers at http://127.0.0.1:9/", str(caught.exception))

    def test_patience_is_for_answers_and_not_for_connections(self):
        with mock.patch("socket.create_connection", side_effect=socket.timeout) as connect:
            with self.assertRaises(imds.Unreachable):
                imds.scheduled_events(endpoint="http://127.0.0.1:9")
        self.assertEqual(connect.call_args[0][1], 2)

    def test_nobody_says_a_word(self):
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen(5)
            begun = time.monotonic()
            with self.assertRaises(imds.Unreachable):
                imds.get("compute/name", endpoint="http://127.0.0.1:%d" % silent.getsockname()[1], timeout=0.5)
            self.assertLess(time.monotonic() - begun, 2)

    def test_an_answer_that_trickles_in(self):
        pieces = [bytes([byte]) for byte in reply()]
        for answer in (pieces, [reply()[:100]] + pieces[100:]):
            begun = time.monotonic()
            with Script(answer) as server, self.assertRaises(imds.Unreachable):
                imds.get("compute/name", endpoint=server.url, timeout=1, deadline=1)
            self.assertLess(time.monotonic() - begun, 3)

    def test_a_slow_answer_is_waited_for(self):
        with Script([b"", b"", reply()]) as server:
            self.assertEqual(imds.get("compute/name", endpoint=server.url), "avset2")

    def test_chunked(self):
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(DOCUMENT), DOCUMENT)
        answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + body
        self.assertEqual(self.ask(answer)[0], "avset2")
        self.assertEqual(self.ask(answer[:-20], answer)[0], "avset2")

    def test_exit_codes(self):
        self.assertEqual([kind.exit_code for kind in (imds.NotFound, imds.Refused, imds.Unreachable, imds.Unavailable,
                                                      imds.NotIMDS)], [1, 1, 3, 4, 5])


if __name__ == "__main__":
    unittest.main()
