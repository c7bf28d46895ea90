"""Room 9: the client, against the emulator and against servers that misbehave."""

import contextlib
import email.utils
import gc
import gzip
import inspect
import io
import json
import os
import pickle
import socket
import sys
import threading
import time
import traceback
import unittest
import warnings
from unittest import mock

import imds
from tests.support import CLOSED, DOCUMENT, HTML, JSON, TEXT, XML, Patient, Script, claims, reply, reserved_port

RESOURCE = "https://vault.azure.net"
TOKEN_PATH = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net"
NO_EVENTS = reply(200, b'{"DocumentIncarnation":1,"Events":[]}')
EVENT = ('{"EventId":"E1","EventStatus":"%s","EventType":"Reboot","ResourceType":"VirtualMachine","Resources":["avset2"],'
         '"NotBefore":"%s"}')
SILENCE = [b""] * 4


def token_answer(**values):
    """An answer with a token, some of its values others."""
    answer = dict({"access_token": "secret", "client_id": "c", "expires_in": "86400", "expires_on": "1700086400",
                   "ext_expires_in": "86399", "not_before": "1699999700", "resource": RESOURCE, "token_type": "Bearer"}, **values)
    return reply(200, json.dumps({name: value for name, value in answer.items() if value is not None}).encode())


def events(*listed, incarnation=1):
    """An answer with a list of events, each as JSON."""
    return reply(200, ('{"DocumentIncarnation":%d,"Events":[%s]}' % (incarnation, ",".join(listed))).encode())


def found(*addresses):
    """Let every name have these addresses."""
    return mock.patch("socket.getaddrinfo", return_value=[
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in addresses])


def error_of(function, *arguments, **settings):
    """The Error that a call raises."""
    try:
        function(*arguments, **settings)
    except imds.Error as error:
        return error
    raise AssertionError("nothing was raised")


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
        for whole in (self.vm.get(""), imds.get(endpoint=self.vm.url), imds.Client(self.vm.url).get()):
            self.assertEqual(sorted(whole), ["compute", "network"])

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

    def test_a_query_without_a_version_gets_one(self):
        self.assertEqual(self.vm.get("compute/name?format=text"), "web_1")
        self.assertEqual(self.vm.get("/metadata/instance?extended=true")["extended"]["compute"]["ppsType"], "None")

    def test_not_found(self):
        with self.assertRaises(KeyError) as caught:
            self.vm.get("compute/vmid")
        self.assertIn("did you mean 'compute/vmId'?", str(caught.exception))
        with self.assertRaises(imds.NotFound) as caught:
            self.vm.get("/metadata/nonsense?api-version=2021-02-01")
        self.assertEqual(caught.exception.status, 404)

    def test_a_field_before_its_time(self):
        error = error_of(self.vm.get, "compute/zone", api_version="2017-08-01")
        self.assertIsInstance(error, imds.NotFound)
        self.assertIn("there is no 'compute/zone' before api-version 2017-12-01", str(error))

    def test_a_query_before_its_time(self):
        for path, first in (("compute/zone?api-version=2017-08-01&format=text", "2017-12-01"),
                            ("/metadata/attested/document?api-version=2018-04-02", "2018-10-01")):
            with self.assertRaisesRegex(imds.NotFound, "it is there since api-version " + first):
                self.vm.get(path)
        for path in ("compute/nonsense?api-version=2017-08-01&format=text", "/metadata/nonsense?api-version=2017-03-01",
                     "/metadata/attested/document/nonsense?api-version=2018-04-02"):
            with self.assertRaisesRegex(imds.NotFound, "check the path and the api-version"):
                self.vm.get(path)
        self.assertEqual(list(inspect.signature(imds.get).parameters), ["path", "format"])  # and no self
        if imds.get.__doc__:  # not with -OO
            for function in (imds.get, imds.approve):  # with the margin of the rest, which Python 3.13 takes away
                self.assertIn("\n\nAlso takes endpoint, api_version, timeout and deadline", inspect.getdoc(function))

    def test_api_version(self):
        self.assertEqual(len(self.vm.get("compute", api_version="2017-04-02")), 11)
        with self.assertRaises(imds.Refused) as caught:
            self.vm.get("compute", api_version="2030-01-01")
        self.assertIn("2025-04-07", str(caught.exception))

    def test_values_that_can_not_be_used(self):
        for call in (lambda: imds.get("x", endpoint="ftp://x"), lambda: imds.get("x", endpoint="127.0.0.1:80"),
                     lambda: imds.get("x", endpoint="http://"), lambda: imds.get("x", endpoint="http://x:abc"),
                     lambda: imds.get("x", endpoint=""), lambda: imds.get("x", endpoint="http://127.0.0.1:9 x"),
                     lambda: self.vm.get("x", timeout=0), lambda: self.vm.get("x", timeout=float("inf")),
                     lambda: self.vm.get("x", deadline=float("nan")), lambda: self.vm.get("x", format="xml"),
                     lambda: self.vm.get("http://example.com/metadata/instance")):
            with self.assertRaises(ValueError):
                call()

    def test_endpoint_from_the_environment(self):
        with mock.patch.dict(os.environ, AZURE_IMDS_ENDPOINT=self.vm.url + "/"):
            self.assertEqual(imds.get("compute/name"), "web_1")
        with mock.patch.dict(os.environ, clear=True):
            self.assertEqual(imds.Client().endpoint, "http://169.254.169.254")
        with mock.patch.dict(os.environ, AZURE_IMDS_ENDPOINT="nonsense"):
            with self.assertRaisesRegex(ValueError, "'nonsense', which is the value of AZURE_IMDS_ENDPOINT"):
                imds.get()
        with mock.patch.dict(os.environ, AZURE_IMDS_ENDPOINT=""), self.assertRaises(ValueError):
            imds.get()

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
        self.assertIn("user-agent: imds.py/%s" % imds.__version__, server.requests[0].lower())
        self.assertNotIn("content-", server.requests[0].lower())

    def test_an_approval(self):
        with Script(reply(200, b"")) as server:
            imds.Client(server.url).approve("A", "B")
        head, _, _ = server.requests[0].partition("\r\n\r\n")
        lines = head.lower().split("\r\n")
        self.assertEqual(lines[0], "post /metadata/scheduledevents?api-version=2020-07-01 http/1.1")
        self.assertIn("content-length: %d" % len('{"StartRequests":[{"EventId":"A"},{"EventId":"B"}]}'), lines)
        self.assertIn("content-type: application/json", lines)

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


    def test_nothing_is_left_open(self):
        chunked = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always", ResourceWarning)
            for answer in (reply(), None, reply()[:-10], b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Type: appli", b"x",
                           chunked + b"5\r\nab", reply(302, b""), reply(400, b"{}"), reply(200, b"x" * 5000000),
                           b"HTTP/1.1 103 Early Hints\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70000 + b"\r\n\r\n"):
                with self.subTest(answer=answer and answer[:60]):
                    with Script(answer) as server, contextlib.suppress(imds.Error):
                        Patient().client(server.url).get()
                    gc.collect()
                    messages, seen[:] = [str(each.message) for each in seen], []
                    self.assertEqual(messages, [])


class Negotiation(unittest.TestCase):
    def test_a_service_that_offers_older_versions(self):
        with imds.Emulator(versions=["2017-04-02", "2019-06-01"]) as vm:
            client = imds.Client(vm.url)
            self.assertIn("storageProfile", client.get("compute"))
            self.assertNotIn("tagsList", client.get("compute"))

    def test_the_best_on_offer(self):
        for offer, best in (('["2017-04-02","2019-06-01","2018-02-01"]', "2019-06-01"), ('["2018-02-01","2017-04-02"]', "2018-02-01")):
            with Script(reply(400, b'{"newest-versions":%s}' % offer.encode()), reply()) as server:
                imds.get(endpoint=server.url)
            self.assertIn("?api-version=%s " % best, server.requests[1])

    def test_it_is_remembered(self):
        lines = []
        with imds.Emulator(versions=["2019-06-01"], log=lines.append) as vm:
            client = imds.Client(vm.url)
            client.get()
            client.get()
        self.assertEqual(len(lines), 3)

    def test_but_not_for_ever(self):
        old, new = b'{"error":"x","newest-versions":["2017-04-02"]}', []

        def choose(request):
            new.append("2025-04-07" in request)
            return reply(400, old) if new == [True] else reply()

        patient = Patient()
        with Script(choose) as server:
            client = patient.client(server.url)
            for _ in range(3):
                client.get()
                patient.now += 30
        self.assertEqual(new, [True, False, False, True])

    def test_a_service_of_2018(self):
        with imds.Emulator(as_of="2018") as vm:
            client = imds.Client(vm.url)
            self.assertEqual(client.get("compute/name"), "avset2")
            client.get()
            asked = [line for line in vm.requests if line.response.status == 200]
            self.assertIn("2018-02-01", asked[0].request.target)

    def test_not_with_a_version_of_ones_own(self):
        with imds.Emulator(as_of="2018") as vm, self.assertRaises(imds.NotFound):
            vm.get("compute/name", api_version="2021-02-01", deadline=1)

    def test_for_the_other_endpoints_too(self):
        with imds.Emulator(versions=["2021-12-13", "2020-10-01"], load_balancer=True) as vm:
            client = imds.Client(vm.url)
            self.assertIn("loadbalancer", client.get("/metadata/loadbalancer"))
            content = imds.attested_content(client.attested())
            self.assertEqual(content["vmId"], vm.instance["compute"]["vmId"])
            self.assertEqual(len(imds.Client(vm.url).snapshot()), 5)

    def test_each_endpoint_has_its_own(self):
        def choose(request):
            target = request.split(" ")[1]
            if target.startswith("/metadata/identity/info"):
                good = "api-version=2018-02-01" in target
                return reply(200, b'{"tenantId":"t"}') if good else reply(400, b'{"newest-versions":["2018-02-01"]}')
            if target.startswith("/metadata/loadbalancer"):
                return reply(200, b'{"loadbalancer":{}}') if "api-version=2025-04-07" in target else reply(404, b"{}")
            return NO_EVENTS if "scheduledevents" in target else reply() if "/instance" in target else reply(400, b"{}")

        with Script(choose) as server:
            vm = imds.Client(server.url).snapshot()
        self.assertEqual(list(vm), ["instance", "scheduledevents", "identity", "loadbalancer"])

    def test_a_refusal_is_passed_on_as_it_was(self):
        with imds.Emulator() as vm:
            with self.assertRaises(imds.NotFound) as caught:
                vm.get("/metadata/loadbalancer")
            self.assertIn("No load balancer metadata is found", caught.exception.body)

    def test_a_large_body_that_comes_with_the_head(self):
        whole = b'{"compute":{"name":"%s"},"network":{}}' % (b"x" * 200000)
        with mock.patch.object(io, "DEFAULT_BUFFER_SIZE", 2**20), Script(reply(200, whole)) as server:  # 128 KiB in Python 3.14
            for _ in range(20):
                self.assertEqual(len(imds.get("compute/name", endpoint=server.url)), 200000)

    def test_nonsense_on_offer(self):
        for offer in (b'["\\ud800"]', b'"abc"', b"[5]", b"{}", b"null", b"[" * 100000, b"NaN", b'["2025-04-07"]'):
            with Script(reply(400, b'{"error":"x","newest-versions":%s}' % offer)) as server:
                with self.assertRaises(imds.Refused):
                    imds.get("compute", endpoint=server.url)
                self.assertEqual(len(server.requests), 1)

    def test_one_that_offers_without_end(self):
        def choose(request):
            return reply(400, b'{"newest-versions":["20%02d-01-01"]}' % (99 - len(server.requests)))

        with Script(choose) as server, self.assertRaises(imds.Refused):
            imds.get("compute", endpoint=server.url)
        self.assertLess(len(server.requests), 10)


class Case(unittest.TestCase):
    def ask(self, *answers, **settings):
        """The result or the error of a get, the pauses it made, and the number of requests."""
        return self.call(lambda client: client.get("compute/name"), *answers, **settings)

    def call(self, function, *answers, **settings):
        """The result or the error of a call, the pauses it made, and the number of requests."""
        patient = Patient()
        with Script(*answers) as server:
            try:
                result = function(patient.client(server.url, **settings))
            except imds.Error as error:
                result = error
        return result, patient.pauses, len(server.requests)


class Answers(Case):
    """What is believed, and what is not."""

    def test_no_patience(self):
        for answer, kind in (
            (reply(400, b'{ "error": "Bad request" }'), imds.Refused), (reply(403, b"{}"), imds.Refused),
            (reply(405, b"{}"), imds.Refused), (reply(302, b"", HTML, ["Location: http://x/"]), imds.NotIMDS),
            (reply(301, b"", JSON, ["Location: /metadata/instance"]), imds.NotIMDS),
            (reply(307, b"", JSON, ["Location: /metadata/instance"]), imds.NotIMDS),
            (reply(200, b"<html>Please log in</html>", HTML), imds.NotIMDS), (reply(404, b"<html>", HTML), imds.NotIMDS),
            (reply(400, b"<html>", HTML), imds.NotIMDS), (reply(204, b""), imds.NotIMDS), (reply(206), imds.NotIMDS),
            (reply(200, b"{"), imds.NotIMDS), (reply(200, b"[]"), imds.NotIMDS), (reply(200, b"5"), imds.NotIMDS),
            (reply(200, b""), imds.NotIMDS), (reply(200, b"null"), imds.NotIMDS),
            (reply(200, b'{"a":1}'), imds.NotIMDS), (reply(200, b'{"compute":5}'), imds.NotIMDS),
            (reply(200, b"[" * 100000), imds.NotIMDS), (reply(200, b"compute/", "text/plain"), imds.NotIMDS),
            (reply(200, DOCUMENT, "application/octet-stream"), imds.NotIMDS), (reply(200, DOCUMENT, "text/csv"), imds.NotIMDS),
            (reply(200, DOCUMENT).replace(b"Content-Type: application/json; charset=utf-8\r\n", b""), imds.NotIMDS),
            (reply(200, b'{"compute":{"name":NaN}}'), imds.NotIMDS),
            (reply(200, b'{"compute":{"name":-Infinity}}'), imds.NotIMDS),
            (reply(200, b'{"compute":{"name":1e999}}'), imds.NotIMDS), (reply(200, b"1" * 3000000), imds.NotIMDS),
            (reply(511, b"<html>", HTML), imds.NotIMDS), (reply(600, b"{}"), imds.NotIMDS), (reply(999, b"{}"), imds.NotIMDS),
            (reply(304, b""), imds.NotIMDS),
            (reply(200, b'{"compute":{"name":"\xff"}}'), imds.NotIMDS),
            (reply(200, gzip.compress(DOCUMENT), JSON, ["Content-Encoding: gzip"]), imds.NotIMDS),
            (b"SSH-2.0-OpenSSH_9.2\r\n", imds.NotIMDS), (b"\x15\x03\x01\x00\x02\x02\n\r\n\r\n", imds.NotIMDS),
            (b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 200 + b"\r\n", imds.NotIMDS),
            (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70000 + b"\r\n\r\n", imds.NotIMDS),
            (b"HTTP/1.1 200 OK\r\n" + (b"a:\r" * 20000 + b"\n") * 66 + b"\r\n", imds.NotIMDS),
            (b"HTTP/1.1 200 OK\r\nContent-Type: multipart/mixed; boundary*=a; boundary*1=b\r\n\r\n", imds.NotIMDS),
            (b"HTTP/1.1 200 OK\r\n" + b"Content-Type: message/rfc822\r\r" * 2000 + b"\r\n\r\n", imds.NotIMDS),
            (b"HTTP/1.1 abc OK\r\n\r\n", imds.NotIMDS), (b"HTTP/1.1 99 OK\r\n\r\n", imds.NotIMDS),
            (reply(200, b'{"compute":"' + b"a" * 5000000 + b'"}'), imds.NotIMDS),
            (reply(200, b'{"compute":{"name":"' + b"a" * 5000000 + b'"}}'), imds.NotIMDS),  # too large, but of the right shape
        ):
            with self.subTest(answer=answer[:60]):
                result, pauses, requests = self.ask(answer)
                self.assertIsInstance(result, kind)
                self.assertEqual((pauses, requests), ([], 1))
                if kind is imds.NotIMDS:
                    self.assertIn("what answers is not IMDS", str(result))

    def test_what_is_passed_over(self):
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (DOCUMENT[:10], DOCUMENT[10:]))
        chunked = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
        for answer in (
            b"HTTP/1.1 100 Continue\r\n\r\n" + reply(), b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + reply(),
            b"HTTP/1.1 102 Processing\r\n\r\n" * 3 + reply(), reply(200, b"\xef\xbb\xbf" + DOCUMENT),
            reply(200, DOCUMENT, "application/json"), reply(200, DOCUMENT, "Application/JSON;charset=UTF-8"),
            reply(200, DOCUMENT + b"\r\n"), reply().replace(b"HTTP/1.1", b"HTTP/1.0"),
            b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + DOCUMENT,
            chunked + b"0\r\n\r\n", chunked + b"0\r\nX: y\r\n\r\n",
            reply(200, b'{"compute":{"name":"avset2","userData":"' + b"a" * 4000000 + b'"}}'),
        ):
            with self.subTest(answer=answer[:60]):
                self.assertEqual(self.ask(answer), ("avset2", [], 1))

    def test_text_in_frames_that_are_not_what_they_seem(self):
        def answer(*headers, body=b"avset2", content_type=TEXT):
            return ("HTTP/1.1 200 OK\r\nContent-Type: %s\r\n%s\r\n" % (
                content_type, "".join(each + "\r\n" for each in headers))).encode() + body

        chunked = b"6\r\navset2\r\n0\r\n\r\n"
        for sent in (answer("Transfer-Encoding: gzip, chunked", body=chunked), answer("Transfer-Encoding: chunked, chunked", body=chunked),
                     answer("Transfer-Encoding: identity", "Transfer-Encoding: chunked", body=chunked),
                     answer("Content-Length: 3", "Content-Length: 6"), answer("Content-Encoding: gzip", "Content-Length: 6"),
                     answer(content_type="text/plain; charset=utf-16", body="avset2".encode("utf-16-le")),
                     answer(content_type="text/plain", body=b"<!DOCTYPE html><title>log in</title>"),
                     answer(content_type="text/plain", body=b"\n<html>"), answer("Content-Length: 10, 10", body=b"abc"),
                     answer("Content-Length: 10x", body=b"abc"), answer("Content-Length: -5", body=b"abc"),
                     answer("Content-Length : 10", body=b"abc"), answer("Transfer-Encoding : chunked", body=chunked),
                     answer("bad line", "Transfer-Encoding: chunked", body=chunked), answer("bad line", "Content-Length: 10"),
                     answer("Content-Encoding: identity", "Content-Encoding: gzip"),
                     answer(content_type="text/plain; charset = utf-16", body=b"a\0b\0"),
                     answer(body=b"<!-- log in --><p>"), answer(body=b"<head>"), answer(body=b"<?xml version='1.0'?><html>")):
            with self.subTest(sent=sent):
                result, _, requests = self.call(lambda client: client.get("compute/name?format=text"), sent)
                self.assertEqual((type(result), requests), (imds.NotIMDS, 1))
        for sent in (answer("Transfer-Encoding: Chunked", body=chunked), answer("Content-Length: 6", "Content-Length: 6"),
                     answer("Content-Encoding: identity"), answer(body=b"\xef\xbb\xbfavset2"),
                     answer("Content-Encoding: identity "), answer("Content-Encoding:"),  # blanks are no part of a value
                     answer(content_type='text/plain; charset="UTF-8"')):
            with self.subTest(sent=sent):
                self.assertEqual(self.call(lambda client: client.get("compute/name?format=text"), sent)[0], "avset2")

    def test_a_leaf_is_text(self):
        for value, text in ((b"5", "5"), (b"null", ""), (b"true", "true"), (b'"x"', "x")):
            self.assertEqual(self.ask(reply(200, b'{"compute":{"name":%s}}' % value))[0], text)

    def test_json_that_would_take_hours_or_gigabytes(self):
        for body in (b"[" * 911 + b'"' + b'\\"' * 1000000, b"[" + b"[{}]," * 400000 + b"[]]"):
            begun = time.monotonic()
            self.assertIsInstance(self.ask(reply(200, body))[0], imds.NotIMDS)
            self.assertLess(time.monotonic() - begun, 2)

    def test_deep_down_in_a_program(self):
        deep = ('{"access_token":"hush","expires_in":"86400","x":%s%s}' % ("[" * 905, "]" * 905)).encode()

        def down(levels, client):
            return down(levels - 1, client) if levels else error_of(client.token, RESOURCE)

        # From Python 3.12 on C code has a limit of its own, and the answer can be read.
        for answer in ([] if sys.version_info >= (3, 12) else [reply(200, deep)]) + [reply(400, deep)]:
            with Script(answer) as server:
                error = down(150, imds.Client(server.url))
                self.assertIsInstance(error, (imds.NotIMDS, imds.Refused))
                self.assertNotIn("hush", repr([frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)
                                               if frame.f_code.co_filename == imds.__file__]))

    def test_a_path_that_a_huge_document_lacks(self):
        deep = b'{"a":' * 950 + b"1" + b"}" * 950
        many = b",".join(b'"a%d":0' % number for number in range(2000))
        for part in (b"[" + b'"a",' * 900000 + b'"a"]', deep, b'{"%s":{%s}}' % (b"K" * 3000000, many)):
            begun = time.monotonic()
            result, _, _ = self.call(lambda client: client.get("compute/nosuch"), reply(200, b'{"compute":{"x":%s}}' % part))
            self.assertIsInstance(result, (imds.NotFound, imds.NotIMDS) if part is deep else imds.NotFound)
            self.assertLess(time.monotonic() - begun, 2)

    def test_text_of_the_service(self):
        self.assertEqual(self.call(lambda client: client.get("/metadata/instance?format=text"), reply(
            200, "caf\u00e9/\n".encode(), TEXT))[0], "caf\u00e9/\n")
        for body, content_type in ((b"\xff", TEXT), (b"x", "image/png"), (b"x", "text/html")):
            result = self.call(lambda client: client.get("/metadata/x?y"), reply(200, body, content_type))[0]
            self.assertIsInstance(result, imds.NotIMDS)

    def test_a_message_is_one_line_that_no_terminal_obeys(self):
        result, _, _ = self.ask(reply(400, b"\x1b[31mboo\x07\r\nfoo"))
        self.assertTrue(str(result).isprintable())
        self.assertIn("boo? foo", str(result))

    def test_exit_codes(self):
        self.assertEqual([kind.exit_code for kind in (imds.NotFound, imds.Refused, imds.Unreachable, imds.Unavailable,
                                                      imds.NotIMDS)], [1, 1, 3, 4, 5])

    def test_errors_are_kept_and_sent(self):
        error, _, _ = self.ask(reply(403, b"{}"))
        for again in (pickle.loads(pickle.dumps(error)), error):
            self.assertEqual((type(again), str(again), again.status, again.body, again.url),
                             (imds.Refused, str(error), 403, "{}", error.url))


class Patience(Case):
    """What is tried again, how often and how long."""

    def test_what_is_tried_again(self):
        for first in (reply(408, b""), reply(410, b"<?xml", XML), reply(429, b"Too many requests", TEXT),
                      reply(429, b"<html>", HTML), reply(500, b""), reply(503, b"<html>", HTML), reply(599, b""),
                      reply(404, b'{ "error": "Not found" }'), None, reply()[:-10], b"HTTP/1.1 200 OK\r\n",
                      b"HTTP/1.1 200 OK\r\nContent-Type: application/js",
                      b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"):
            with self.subTest(first=first and first[:20]):
                result, pauses, requests = self.ask(first, first, reply())
                self.assertEqual((result, len(pauses), requests), ("avset2", 2, 3))
                self.assertGreater(pauses[1], pauses[0])

    def test_of_the_token_path_too(self):
        def ask(client):
            return client.token(RESOURCE)

        for first in (reply(404, b'{"error":"Not Found"}'), reply(410, b""), reply(429, b"{}"), reply(500, b""), None):
            result, pauses, requests = self.call(ask, first, token_answer())
            self.assertEqual((result, len(pauses), requests), ("secret", 1, 2))
        for answer in (reply(400, b"{}"), reply(401, b"{}"), reply(403, b"{}")):
            result, pauses, requests = self.call(ask, answer)
            self.assertIsInstance(result, imds.Refused)
            self.assertEqual((pauses, requests), ([], 1))
        for call in (ask, imds.Client.get):
            result, _, requests = self.call(call, reply(401, b"", headers=["WWW-Authenticate: Basic realm=/x/1.key"]))
            self.assertEqual((type(result), requests), (imds.NotIMDS, 1))
            self.assertIn("Azure Arc", str(result))

    def test_a_404_elsewhere_is_an_answer(self):
        for path in ("/metadata/loadbalancer", "/metadata/identity/info", "/metadata/nonsense?api-version=2021-02-01"):
            result, pauses, _ = self.call(lambda client: client.get(path), reply(404, b"{}"))  # noqa: B023
            self.assertIsInstance(result, imds.NotFound)
            self.assertEqual(pauses, [])

    def test_when_patience_ends(self):
        for answer, least, most in ((reply(429, b"{}"), 18, 20), (reply(500, b"{}"), 18, 20),
                                    (reply(410, b"{}"), 68, 70), (reply(404, b"{}"), 18, 20), (None, 18, 20)):
            with self.subTest(answer=answer and answer[:12]):
                result, pauses, _ = self.ask(answer)
                self.assertIsInstance(result, imds.Unavailable if answer else imds.Unreachable)
                self.assertGreater(sum(pauses), least)
                self.assertLess(sum(pauses), most)
                self.assertLess(max(pauses), 10.1)
        result, pauses, _ = self.ask(reply(410, b"{}"), deadline=5)
        self.assertLess(sum(pauses), 5)
        self.assertEqual((result.status, result.body), (410, "{}"))

    def test_one_410_does_not_make_what_follows_wait_for_ever(self):
        result, pauses, _ = self.ask(reply(410, b"{}"), reply(500, b"{}"))
        self.assertIsInstance(result, imds.Unavailable)
        self.assertLess(sum(pauses), 25)

    def test_the_last_try_is_made_near_the_deadline(self):
        for bad, back, settings in ((reply(500, b""), 18.9, {}), (reply(429, b""), 18.9, {}), (None, 18.9, {}),
                                    (reply(410, b""), 68.9, {}), (reply(503, b""), 4.4, {"deadline": 5})):
            for _ in range(10):  # whatever the chances of the pauses are
                patient = Patient()
                with Script(lambda request: reply() if patient.now >= back else bad) as server:  # noqa: B023
                    self.assertEqual(patient.client(server.url, **settings).get("compute/name"), "avset2")

    def test_the_deadline_is_for_all_requests_together(self):
        throttled = reply(429, b"{}")
        refusal = reply(400, b'{"newest-versions":["2017-04-02"]}')
        result, pauses, _ = self.ask(throttled, throttled, refusal, throttled, deadline=6)
        self.assertIsInstance(result, imds.Unavailable)
        self.assertLess(sum(pauses), 6)
        for call in (lambda client: client.snapshot(), lambda client: client.attested(),
                     lambda client: client.get_all(["compute/name", "/metadata/versions", "/metadata/loadbalancer"])):
            def choose(request):
                if "/instance" in request:
                    return reply() if len(server.requests) > 2 else throttled  # noqa: B023
                return throttled

            patient = Patient()
            with Script(choose) as server:
                error = error_of(call, patient.client(server.url, deadline=2))
            self.assertIsInstance(error, imds.Unavailable)
            self.assertLessEqual(sum(patient.pauses), 2)

    def test_retry_after(self):
        date = "\r\nDate: Sat, 07 Feb 2026 11:04:46 GMT"
        for header, least, most in (
            ("7", 7, 7.1), ("0", 0, 2), ("soon", 0, 2), ("-5", 0, 2), ("1e1", 0, 2), ("7 ", 7, 7.1), ("19", 19, 19.1),
            ("Sat, 07 Feb 2026 11:04:53 GMT" + date, 7, 7.1), ("Sat, 07 Feb 2026 11:04:40 GMT" + date, 0, 2),
            ("Fri, 07 Feb 2025 11:04:53 GMT", 0, 2),
            (email.utils.formatdate(time.time() + 9.5, usegmt=True), 8, 10.1),
            (email.utils.formatdate(time.time() + 9.5, usegmt=True) + "\r\nDate: garbage", 8, 10.1),
        ):
            result, pauses, _ = self.ask(reply(429, b"", JSON, ["Retry-After: " + header]), reply())
            self.assertEqual((result, len(pauses)), ("avset2", 1))
            self.assertTrue(least <= pauses[0] <= most, pauses)
        for header in ("20", "21", "3600", "9" * 30, "Sat, 07 Feb 2026 12:04:46 GMT" + date):
            result, pauses, requests = self.ask(reply(503, b"", JSON, ["Retry-After: " + header]))
            self.assertIsInstance(result, imds.Unavailable)
            self.assertEqual((pauses, requests), ([], 1))  # it will not be any better before the deadline
        result, pauses, _ = self.ask(reply(429, b"", JSON, ["Retry-After: 5"]), deadline=5.3)  # nor asked for any sooner
        self.assertEqual((type(result), pauses), (imds.Unavailable, []))

    def test_resets_for_ever(self):
        result, pauses, _ = self.ask(None)
        self.assertIsInstance(result, imds.Unreachable)
        self.assertIsInstance(result, OSError)
        self.assertIn(" broke off (", str(result))
        self.assertLess(sum(pauses), 20)

    def test_who_is_away_after_an_answer_may_come_back(self):
        for back, expected in ((5.5, imds.Reply), (60, imds.Unreachable)):
            patient = Patient()

            def fetch(url, body, limit):
                if 4 < patient.now < back:  # noqa: B023
                    raise ConnectionRefusedError(111, "refused")
                return imds.Reply(503 if patient.now <= 4 else 200, {}, b"", url)  # noqa: B023

            with mock.patch.object(imds, "_transport", lambda: fetch):  # noqa: B023
                try:
                    result = patient.client(CLOSED)._ask("/", imds._Call(0))
                except imds.Error as error:
                    result = error
            self.assertIsInstance(result, expected)
            self.assertLess(patient.now, 16)  # two seconds after a pause of up to ten

    def test_a_silence_after_an_answer_is_another(self):
        silence = imds._Silence("timed out")
        answers = [silence, imds.Reply(500, {}, b"", "/"), silence, imds.Reply(200, {}, b"", "/")]

        def fetch(*arguments):
            answer = answers.pop(0)
            if answer is silence:
                raise answer
            return answer

        with mock.patch.object(imds, "_transport", lambda: fetch):
            self.assertEqual(Patient().client(CLOSED)._ask("/", imds._Call(0)).status, 200)

    def test_a_silence_is_tried_once_more(self):
        with Script(SILENCE[:2], reply()) as server:
            self.assertEqual(imds.get("compute/name", endpoint=server.url, timeout=0.3), "avset2")
            self.assertEqual(len(server.requests), 2)

    def test_there_is_an_end_to_it(self):
        for deadline in (0.1, 0.2, 0.25, 0.7, 1, 1.1, 3.3, 7, 19.9, 50):
            for answer in (reply(500, b""), None, reply(410, b"")):
                result, pauses, requests = self.ask(answer, deadline=deadline)
                self.assertIsInstance(result, imds.Error)
                self.assertLess(requests, 10 + 2 * deadline)
                self.assertLessEqual(sum(pauses), deadline)

    def test_a_service_that_failed_and_is_cut_off_by_the_deadline(self):
        patient = Patient()
        with Script(reply(500, b"{}"), SILENCE) as server:
            error = error_of(patient.client(server.url, deadline=1, timeout=0.2).get)
        self.assertIsInstance(error, imds.Unavailable)
        self.assertEqual(error.status, 500)
        with Script(reply(500, b"{}"), SILENCE[:2]) as server:
            error = error_of(Patient().client(server.url, timeout=0.1).get)
        self.assertIsInstance(error, imds.Unavailable)

    def test_a_vm_that_moves(self):
        port = reserved_port(self)
        for away in ("refused", "reset"):
            patient = Patient()
            vm = imds.Emulator(port=port)
            server = [vm.start()]
            vm.fail("410")

            class Moving(Patient):
                def sleep(self, seconds):
                    super().sleep(seconds)
                    if self.now < 40 and server:  # noqa: B023
                        server.pop().stop()  # noqa: B023
                    if self.now >= 40 and not server:  # noqa: B023
                        server.append(vm.start())  # noqa: B023

            patient = Moving()
            if away == "reset":
                vm.fail("reset x4")
                patient = Patient()
            self.assertEqual(patient.client("http://127.0.0.1:%d" % port).get("compute/name"), "avset2")
            vm.stop()

    def test_of_each_endpoint(self):
        limits = []

        def fetch(url, body, limit, *more):
            limits.append(tuple(limit.row))
            raise ConnectionRefusedError(111, "refused")

        with mock.patch.object(imds, "_transport", lambda: fetch):
            for call, expected in (
                (lambda client: client.get(), (2, 2, 20, 70)), (lambda client: client.token("x"), (2, 10, 20, 70)),
                (lambda client: client.attested(), (2, 10, 20, 70)),
                (lambda client: client.scheduled_events(), (2, 120, 120, 120)),
                (lambda client: client.approve("x"), (2, 120, 120, 120)),
                (lambda client: client.get("/metadata/versions"), (2, 2, 20, 70)),
            ):
                self.assertRaises(imds.Unreachable, call, Patient().client(CLOSED))
                self.assertEqual(limits[-1], expected)
            self.assertRaises(imds.Unreachable, Patient().client(CLOSED, timeout=3, deadline=7).get)
            self.assertEqual(limits[-1], (3, 3, 7, 7))
        with Script(NO_EVENTS) as server:
            client = Patient().client(server.url)
            client.scheduled_events()
            with mock.patch.object(imds, "_transport", lambda: fetch):
                self.assertRaises(imds.Unreachable, client.scheduled_events)
        self.assertEqual(limits[-1], (2, 5, 20, 70))  # only the first list may take two minutes


class Deadlines(Case):
    """Nothing that the other side does can stretch them. These take the time that they are about."""

    def within(self, most, call, *arguments, **settings):
        begun = time.monotonic()
        error = error_of(call, *arguments, **settings)
        self.assertLess(time.monotonic() - begun, most)
        return error

    def test_nobody_there(self):
        patient = Patient()
        error = error_of(patient.client(CLOSED).get, "compute/name")
        self.assertIsInstance(error, imds.Unreachable)
        self.assertLess(patient.now, 2.1)
        self.assertIn("nobody answers at http://127.0.0.1:9/", str(error))

    def test_nobody_says_a_word(self):
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen(5)
            url = "http://127.0.0.1:%d" % silent.getsockname()[1]
            error = self.within(1.5, imds.get, "compute/name", endpoint=url, timeout=0.1)
            self.assertIsInstance(error, imds.Unreachable)
            self.assertIn("something listens at " + url, str(error))
            self.assertIn("does not answer in time", str(error))
            self.assertNotIn("nobody", str(error))
            self.within(1, imds.get, endpoint=url, deadline=0.2)

    def test_trickles(self):
        answer = reply()
        head = answer[:answer.index(b"\r\n\r\n") + 4]
        chunked = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        one_by_one = [answer[at:at + 1] for at in range(len(answer))]
        for pieces in (
            one_by_one, [answer[:100]] + one_by_one[100:], [head] + one_by_one[len(head):],
            [b"HTTP/1.1 100 Continue\r\n\r\n"] * 1000, [b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"] * 1000,
            [b"HTTP/1.1 200 OK\r\n"] + [b"X: y\r\n"] * 1000, [chunked] + [b"1\r\n5\r\n"] * 1000,
            [chunked + b"%x\r\n%s\r\n0\r\n" % (len(DOCUMENT), DOCUMENT)] + [b"X: y\r\n"] * 1000,
            [chunked + b"5;"] + [b"x"] * 1000,
        ):
            with self.subTest(pieces=pieces[:2]), Script(pieces, pace=0.02) as server:
                self.assertIsInstance(self.within(1, imds.get, "compute/name", endpoint=server.url, deadline=0.15),
                                      imds.Unreachable)

    def test_floods(self):
        for piece in (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\n\r\n"):
            with Script([piece * 1000] * 100000, pace=0) as server:
                self.within(2, imds.get, "compute/name", endpoint=server.url, deadline=0.3)

    def test_what_comes_before_an_answer_is_limited_too(self):
        interim = b"HTTP/1.1 100 Continue\r\nX: " + b"a" * 60000 + b"\r\n\r\n"
        with Script([interim] * 10000, pace=0) as server:
            self.assertIsInstance(self.within(3, imds.get, endpoint=server.url, timeout=5, deadline=20), imds.NotIMDS)

    def test_an_end_within_the_first_line(self):
        for size in (1, 3, 4, 9):
            with Script(reply()[:size], reply()) as server:
                self.assertEqual(Patient().client(server.url).get("compute/name"), "avset2")

    def test_a_silence_after_a_byte(self):
        with Script([b"", b"H", b"", b"", b""], pace=0.6) as server:  # a deadline that began again then would end after 1.3
            self.assertIsInstance(self.within(1.2, imds.get, endpoint=server.url, deadline=0.7), imds.Unreachable)

    def test_a_slow_answer_is_waited_for(self):
        with Script([b"", b"", reply()], pace=0.1) as server:
            self.assertEqual(imds.get("compute/name", endpoint=server.url), "avset2")
            self.assertEqual(len(server.requests), 1)

    def unconnected(self, patient):
        """Let every connect() take all the time that it may, and fail; returns how long each may have taken."""
        times = []

        def connect(one, address):
            times.append(one.gettimeout())
            patient.now += one.gettimeout()
            raise socket.timeout("timed out")

        patch = mock.patch.object(socket.socket, "connect", connect)
        patch.start()
        self.addCleanup(patch.stop)
        return times

    def test_patience_is_for_answers_and_not_for_connections(self):
        patient = Patient()
        times = self.unconnected(patient)
        error = error_of(patient.client(CLOSED).scheduled_events)
        self.assertIsInstance(error, imds.Unreachable)
        self.assertEqual((times[0], patient.now < 4.1), (2, True))
        self.assertIn("nobody answers at", str(error))

    def test_connecting_ends_at_the_deadline(self):
        patient = Patient()
        times = self.unconnected(patient)
        self.assertIsInstance(error_of(patient.client(CLOSED, deadline=0.7).get), imds.Unreachable)
        self.assertTrue(sum(times) <= patient.now <= 0.71, times)

    def test_names_that_are_not_resolved(self):
        over = threading.Event()
        self.addCleanup(over.set)
        with mock.patch("socket.getaddrinfo", lambda *arguments, **settings: over.wait(5) and []):
            for settings in ({"deadline": 0.2}, {"timeout": 0.1, "deadline": 0.3}):
                error = self.within(1.5, imds.get, endpoint="http://imds.example:80", **settings)
                self.assertIsInstance(error, imds.Unreachable)
                self.assertIn("imds.example", str(error))
        with mock.patch("socket.getaddrinfo", side_effect=socket.gaierror(-2, "Name or service not known")):
            error = error_of(Patient().client("http://imds.example").get)
            self.assertIsInstance(error, imds.Unreachable)
            self.assertIn("Name or service not known", str(error))

    def test_a_system_without_one_family(self):
        with imds.Emulator(allow_hosts="imds.example") as vm, found("::1", "127.0.0.1"):
            create = socket.socket.__init__

            def init(self, family=socket.AF_INET, *arguments, **settings):
                if family == socket.AF_INET6:
                    raise OSError("Address family not supported by protocol")
                create(self, family, *arguments, **settings)

            with mock.patch.object(socket.socket, "__init__", init):
                self.assertEqual(imds.get("compute/name", endpoint="http://imds.example:%d" % vm.port, deadline=2), "avset2")

    def test_thousands_of_addresses(self):
        with found(*["127.%d.%d.9" % divmod(number, 250) for number in range(3000)]):
            begun = time.monotonic()
            error = error_of(imds.get, endpoint="http://imds.example:9", deadline=0.2)
        self.assertIsInstance(error, imds.Unreachable)
        self.assertLess(time.monotonic() - begun, 0.6)

    def test_a_server_that_does_not_read(self):
        listener = socket.socket()
        self.addCleanup(listener.close)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen(5)
        begun = time.monotonic()
        client = imds.Client("http://127.0.0.1:%d" % listener.getsockname()[1], deadline=0.5)
        error = error_of(client.approve, *["%036d" % number for number in range(200000)])
        self.assertIsInstance(error, imds.Unreachable)
        self.assertEqual(error.what, "silence")
        self.assertLess(time.monotonic() - begun, 1.5)

    def test_an_interrupt_leaves_no_socket_open(self):
        close, interrupted = socket.socket.close, []

        def interrupt(self):
            if type(self) is not socket.socket and not interrupted:
                interrupted.append(self.fileno())
                raise KeyboardInterrupt
            close(self)

        with imds.Emulator() as vm, warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with mock.patch.object(socket.socket, "close", interrupt), self.assertRaises(KeyboardInterrupt):
                vm.get("compute/name")
            gc.collect()
        self.assertEqual((len(interrupted), [str(each.message) for each in said]), (1, []))

    def test_several_addresses(self):
        with imds.Emulator() as vm, found("127.0.0.2", "127.0.0.1"):
            self.assertEqual(imds.get("compute/name", endpoint="http://localhost:%d" % vm.port), "avset2")
        for settings, most in (({"deadline": 1}, 1.01), ({}, 2.1)):
            patient = Patient()
            times = self.unconnected(patient)
            with found(*["127.9.9.%d" % number for number in range(8)]):
                self.assertIsInstance(error_of(patient.client("http://imds.example", **settings).get), imds.Unreachable)
            self.assertGreaterEqual(len(times), 8)  # each had its share
            self.assertLess(patient.now, most)

    def test_messages_say_what_led_there(self):
        for variables, word in (({"AZURE_IMDS_ENDPOINT": CLOSED}, "AZURE_IMDS_ENDPOINT leads there"), ({}, None)):
            with mock.patch.dict(os.environ, variables):
                error = error_of(Patient().client(None if word else CLOSED).get)
            self.assertEqual("AZURE_IMDS_ENDPOINT" in str(error), bool(word))
            if word:
                self.assertIn(word, str(error))


class Events(Case):
    def test_a_maintenance_in_no_time(self):
        with imds.Emulator() as vm:
            vm.clock.freeze()
            client = imds.Client(vm.url)
            event_id = vm.schedule("Reboot")
            self.assertEqual(client.scheduled_events()["Events"][0]["EventId"], event_id)
            vm.clock.advance(900)
            self.assertEqual(client.scheduled_events()["Events"][0]["EventStatus"], "Started")
            vm.clock.advance(600)
            self.assertEqual(imds.scheduled_events(endpoint=vm.url)["Events"], [])

    def test_approve_and_cancel(self):
        with imds.Emulator() as vm:
            one, other = vm.play("user-reboot"), vm.schedule("Freeze")
            imds.approve(one, endpoint=vm.url)
            vm.cancel(other)
            events = imds.scheduled_events(endpoint=vm.url)["Events"]
            self.assertEqual([event["EventStatus"] for event in events], ["Started"])
            with self.assertRaises(imds.Refused):
                imds.approve("unknown", endpoint=vm.url)

    def test_a_service_of_2018(self):
        with imds.Emulator(as_of="2018", rate_limit=0) as vm:
            event_id = vm.schedule("Reboot")
            client = imds.Client(vm.url)
            self.assertNotIn("Description", client.scheduled_events()["Events"][0])
            client.approve(event_id)
            self.assertEqual(client.scheduled_events()["Events"][0]["EventStatus"], "Started")
            asked = [each.request.target.rpartition("=")[2] for each in vm.requests]
            self.assertEqual(asked, ["2020-07-01", "2017-08-01", "2017-08-01", "2017-08-01"])

    def test_one_404_hides_no_kind_of_event(self):
        with imds.Emulator() as vm:
            vm.schedule("Terminate")
            patient = Patient()
            client = patient.client(vm.url)
            self.assertEqual(len(client.scheduled_events()["Events"]), 1)
            vm.fail("scheduledevents: 404")
            self.assertIsInstance(error_of(client.scheduled_events), imds.NotFound)
            self.assertEqual(len(client.scheduled_events()["Events"]), 1)
            client = patient.client(vm.url)
            vm.fail("scheduledevents: 404")  # at the first request, it may be a service that is too old
            self.assertEqual(client.scheduled_events()["Events"], [])
            patient.now += 59
            self.assertEqual(client.scheduled_events()["Events"], [])
            patient.now += 1
            self.assertEqual(len(client.scheduled_events()["Events"]), 1)

    def test_not_a_list_of_events(self):
        event = '{"EventId":%s,"EventStatus":"Scheduled","EventType":"Reboot","Resources":%s,"NotBefore":"%s"%s}'
        for body in ("[]", "{}", '{"Events":5}', '{"Events":[5]}', "{", '{"Events":[]}', "null",
                     '{"DocumentIncarnation":null,"Events":[]}', '{"DocumentIncarnation":"1","Events":[]}',
                     '{"DocumentIncarnation":true,"Events":[]}', '{"DocumentIncarnation":1,"Events":{}}'):
            with Script(reply(200, body.encode())) as server, self.assertRaises(imds.NotIMDS):
                imds.scheduled_events(endpoint=server.url)
        for odd in (event % ('"x"', "[]", "soon", ""), event % ('"x"', "null", "", ""), event % ('"x"', '"web_10"', "", ""),
                    event % ("[]", "[]", "", ""), event % ("5", "[]", "", ""), event % ('""', "[]", "", ""),
                    event % ('"x"', "[5]", "", ""), event % ('"x"', "[]", "99999-01-01T00:00:00Z", ""),
                    event % ('"x"', "[]", "Fri, 01 Jan 99999 00:00:00 GMT", ""),
                    event % ('"x"', "[]", "", ',"Description":"\\ud800"'), event % ('"x"', "[]", "", ',"Description":5'),
                    event % ('"x"', "[]", "", ',"DurationInSeconds":"5"'), '{"EventId":"x"}', "[]", "null"):
            with self.subTest(odd=odd), Script(events(odd)) as server, self.assertRaises(imds.NotIMDS):
                imds.scheduled_events(endpoint=server.url)

    def test_a_list_without_end(self):
        for body in (b"{}," * 19000 + b"{}", b"{}," * 300000 + b"{}"):
            body = b'{"DocumentIncarnation":1,"Events":[%s],"x":"%s"}' % (body, b"\xc3\xa9" * 500000)
            begun = time.monotonic()
            with Script(reply(200, body)) as server:
                self.assertIsInstance(error_of(imds.scheduled_events, endpoint=server.url, deadline=5), imds.NotIMDS)
            self.assertLess(time.monotonic() - begun, 4)

    def test_a_query_of_ones_own(self):
        with imds.Emulator() as vm:
            for path in ("/metadata/scheduledevents?x=y", "/metadata/scheduledevents/", "/metadata/scheduledevents?"):
                self.assertEqual(imds.get(path, endpoint=vm.url)["Events"], [])
            self.assertTrue(vm.requests[0].request.target.endswith("?api-version=2020-07-01&x=y"))
            self.assertIsInstance(error_of(imds.get, "/metadata/scheduledevents/x", endpoint=vm.url), imds.NotFound)

    def test_odd_dates_of_an_answer(self):
        for date in ("Fri, 01 Jan 99999 00:00:00 GMT", "soon", "", "Sat, 99 Feb 2026 11:04:46 GMT"):
            with Script(reply(200, b'{"DocumentIncarnation":1,"Events":[]}', JSON, ["Date: " + date])) as server:
                self.assertEqual(imds.scheduled_events(endpoint=server.url)["Events"], [])

    def test_what_an_approval_believes(self):
        for answer, kind in (
            (reply(200, b""), None), (reply(200, b" \r\n"), None), (reply(200, b"{}"), None), (reply(204, b""), None),
            (reply(200, b'{"DocumentIncarnation":2,"Events":[]}'), None),
            (reply(200, b"<html>", HTML), imds.NotIMDS), (reply(200, gzip.compress(b"{}")), imds.NotIMDS),
            (reply(200, b"{"), imds.NotIMDS), (reply(200, b'{"error":"no"}'), imds.Refused),
            (reply(302, b"", HTML, ["Location: /"]), imds.NotIMDS), (reply(400, b"{}"), imds.Refused),
            (reply(400, b"<html>", HTML), imds.NotIMDS), (reply(404, b"{}"), imds.NotFound),
            (reply(200, b"[]"), imds.NotIMDS), (reply(200, b'"denied"'), imds.NotIMDS), (reply(200, b"0"), imds.NotIMDS),
            (reply(200, b"null"), imds.NotIMDS), (reply(200, b"", HTML), imds.NotIMDS),
            (reply(200, b'{"Error":"no"}'), imds.Refused), (reply(200, b'{"errors":["no"]}'), imds.Refused),
        ):
            with self.subTest(answer=answer[:60]):
                result, pauses, requests = self.call(lambda client: client.approve("E1"), answer)
                self.assertEqual(type(result), kind or type(None))
                self.assertEqual(pauses, [])
                self.assertEqual(requests, 2 if kind is imds.NotFound else 1)

    def test_an_approval_after_a_failing_answer(self):
        for status, taken in ((504, True), (429, False)):
            result, _, requests = self.call(lambda client: client.approve("E1"), reply(status, b""), reply(400, b"{}"),
                                            events(EVENT % ("Started", "")))
            self.assertEqual((type(result), requests), (type(None), 3) if taken else (imds.Refused, 2))

    def test_what_nobody_heard_was_not_taken(self):
        port = reserved_port(self)

        def come(seconds, vms=[]):  # noqa: B006
            if not vms:
                vms.append(imds.Emulator(port=port).start())
                self.addCleanup(vms[0].stop)
            patient.now += seconds

        patient = Patient()
        client = imds.Client("http://127.0.0.1:%d" % port, clock=patient.clock, timer=patient.timer, sleep=come, deadline=4)
        self.assertIsInstance(error_of(client.approve, "11111111-1111-1111-1111-111111111111"), imds.Refused)

    def test_an_approval_whose_answer_was_lost(self):
        started, waiting = EVENT % ("Started", ""), EVENT % ("Scheduled", "")
        other = waiting.replace("E1", "E2")
        for listed, taken in ((events(started), True), (events(), True), (events(other), True), (events(waiting), False),
                              (events(waiting.replace("E1", "e1")), False)):
            result, _, requests = self.call(lambda client: client.approve("E1"), None, reply(400, b"{}"), listed)
            self.assertEqual((type(result), requests), (type(None) if taken else imds.Refused, 3))
        for odd in ('{"EventId":"e1"}', "{}"):  # it may be the one that can't be read
            result, _, _ = self.call(lambda client: client.approve("E1"), None, reply(400, b"{}"), events(odd))
            self.assertEqual(type(result), imds.Refused)
        result, _, requests = self.call(lambda client: client.approve("E1"), reply(400, b"{}"), events())
        self.assertEqual((type(result), requests), (imds.Refused, 1))


class Tokens(Case):
    def test_token(self):
        with imds.Emulator(identities=["system", "user:app"]) as vm:
            token = imds.token(RESOURCE, endpoint=vm.url)
            self.assertEqual(claims(token)[1]["aud"], RESOURCE)
            app = vm.identities[1]
            for settings in ({"client_id": app["clientId"]}, {"object_id": app["objectId"]},
                             {"msi_res_id": app["resourceId"]}, {"mi_res_id": app["resourceId"]}):
                token = imds.token(RESOURCE, endpoint=vm.url, **settings)
                self.assertEqual(claims(token)[1]["appid"], app["clientId"])
            vm.identities = ["user:one", "user:two"]
            with self.assertRaises(imds.Refused) as caught:
                imds.Client(vm.url).token(RESOURCE)
            self.assertIn("Multiple user assigned identities", str(caught.exception))
            vm.identities = []
            with self.assertRaises(imds.Refused):
                imds.Client(vm.url).token(RESOURCE)
        with self.assertRaises(TypeError):
            imds.Client().token("x", name="y")

    def test_it_is_kept_until_shortly_before_it_expires(self):
        lines, patient = [], Patient()
        with imds.Emulator(log=lines.append) as vm:
            client = patient.client(vm.url)
            first = client.token(RESOURCE)
            patient.now += 86000
            self.assertEqual(client.token(RESOURCE), first)
            self.assertEqual(len(lines), 1)
            patient.now += 200
            client.token(RESOURCE)
            client.token("https://storage.azure.com")
            self.assertEqual(len(lines), 3)
            self.assertNotIn(first, "".join(lines))

    def tokens(self, *steps):
        """The number of requests after each step of a Patient's clocks; every answer is another token."""
        patient, counts = Patient(), []
        with Script(lambda request: token_answer(access_token="t%d" % len(server.requests), expires_on=None)) as server:
            client = patient.client(server.url)
            client.token(RESOURCE)
            for step in steps:
                step(patient)
                self.assertEqual(client.token(RESOURCE), "t%d" % len(server.requests))
                counts.append(len(server.requests))
        return counts

    def test_it_goes_by_both_clocks(self):
        def sleep(patient):  # the timer stands still, as while a VM hibernates
            patient.since_1970 += 3 * 86400

        def set_back(patient):
            patient.since_1970 -= 86400

        def pass_by(patient):
            patient.now += 50000

        self.assertEqual(self.tokens(lambda patient: None, sleep, lambda patient: None), [1, 2, 2])
        self.assertEqual(self.tokens(set_back, pass_by, pass_by), [1, 1, 2])

    def test_a_renewal_that_fails_leaves_the_kept_one(self):
        for failure in (reply(500, b"{}"), None, reply(200, b"<html>", HTML), reply(429, b"{}"), reply(410, b""),
                        reply(400, b"{}"), reply(403, b"{}"), reply(404, b"{}")):
            patient, bad = Patient(), []
            with Script(lambda request: failure if bad else token_answer(expires_on=None)) as server:  # noqa: B023
                client = patient.client(server.url)
                client.token(RESOURCE)
                patient.now, bad = 86400 - 250, [True]
                self.assertEqual(client.token(RESOURCE), "secret")
                asked = len(server.requests)
                self.assertGreater(asked, 1)
                patient.now += 5
                self.assertEqual(client.token(RESOURCE), "secret")
                self.assertEqual(len(server.requests), asked)  # not at each call
                patient.now = 86400 - 100
                self.assertEqual(client.token(RESOURCE), "secret")
                patient.now = 86400.0
                with self.assertRaises(imds.Error):
                    client.token(RESOURCE)

    def test_it_is_not_kept_beyond_its_end(self):
        patient = Patient()
        with Script(token_answer(expires_in="310", expires_on=None), reply(503, b"")) as server:
            client = patient.client(server.url)
            client.token(RESOURCE)
            patient.now += 305
            self.assertIsInstance(error_of(client.token, RESOURCE), imds.Unavailable)

    def test_threads_have_the_kept_one_while_it_is_renewed(self):
        with imds.Emulator() as vm:
            now = [time.time()]
            client, tokens = imds.Client(vm.url, clock=lambda: now[0]), []
            first, client.deadline = client.token(RESOURCE), 0.3
            now[0] += 86400 - 250
            vm.fail("identity: hang always")
            threads = [threading.Thread(target=lambda: tokens.append(client.token(RESOURCE))) for _ in range(10)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(tokens, [first] * 10)
            self.assertLessEqual(len(vm.requests), 4)

    def test_threads_share_one_that_does_not_last(self):
        with Script([b""] * 2 + [token_answer(expires_in="200", expires_on=None)], pace=0.1) as server:
            client, tokens, begun = imds.Client(server.url, deadline=2), [], time.monotonic()
            threads = [threading.Thread(target=lambda: tokens.append(client.token(RESOURCE))) for _ in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual((tokens, len(server.requests)), (["secret"] * 20, 1))
            self.assertLess(time.monotonic() - begun, 1.5)

    def test_each_thread_has_its_own_patience(self):
        with imds.Emulator(faults=["identity: 503 for 1.2s"]) as vm:
            client, ends = imds.Client(vm.url, deadline=1.2), []
            early = threading.Thread(target=lambda: ends.append(error_of(client.token, RESOURCE)))
            early.start()
            time.sleep(0.7)
            self.assertTrue(client.token(RESOURCE))
            early.join()

    def test_a_signal_handler_may_want_the_same(self):
        with imds.Emulator(faults=["identity: delay 300ms"]) as vm:
            client = imds.Client(vm.url)
            inner = []

            def ask(*arguments):
                if not inner:
                    inner.append("")
                    inner[0] = client.token(RESOURCE)
                return new_token(*arguments)

            new_token = client._new_token
            with mock.patch.object(client, "_new_token", ask):
                self.assertEqual(client.token(RESOURCE), inner[0])

    def test_a_renewal_that_is_worse_leaves_the_kept_one(self):
        for worse in (token_answer(access_token="worse", expires_in="0", expires_on=None),
                      token_answer(access_token="worse", expires_on="1000"),
                      token_answer(access_token="worse", expires_in="5", expires_on=None)):
            patient = Patient()
            with Script(token_answer(expires_in="600", expires_on=None), worse) as server:
                client = patient.client(server.url)
                client.token(RESOURCE)
                patient.now += 400
                self.assertEqual([client.token(RESOURCE) for _ in range(3)], ["secret"] * 3)
                self.assertEqual(len(server.requests), 2)  # and not at each call

    def test_one_that_does_not_last_is_asked_for_twice_a_minute(self):
        patient = Patient()
        with Script(lambda request: token_answer(expires_in="200", expires_on=None)) as server:
            client = patient.client(server.url)
            for second in range(0, 70, 10):
                patient.now = second
                client.token(RESOURCE)
            self.assertEqual(len(server.requests), 3)

    def test_of_two_that_have_expired_it_is_the_new_one(self):
        patient = Patient()
        with Script(lambda request: token_answer(access_token="T%d" % len(server.requests), expires_on="1506484173")) as server:
            client, tokens = patient.client(server.url), []
            for seconds in (0.9, 10.2, 3600, 86400.3, 5):  # the first expires later in its second
                patient.now += seconds
                tokens.append(client.token(RESOURCE))
        self.assertEqual(tokens, ["T1", "T2", "T3", "T4", "T5"])

    def test_one_that_is_good_needs_no_turn(self):
        with Script(token_answer(expires_on=None)) as server:  # an interrupt could leave it taken
            client = imds.Client(server.url)
            client.token(RESOURCE)
            for shared in client._tokens.values():
                shared.turns = None
            self.assertEqual(client.token(RESOURCE), "secret")

    def test_none_is_good_for_years(self):
        patient = Patient()
        with Script(token_answer(expires_in="86400000", expires_on=None)) as server:
            client = patient.client(server.url)
            for _ in range(2):
                client.token(RESOURCE)
                patient.now += 2 * 86400
            client.token(RESOURCE)
            self.assertEqual(len(server.requests), 3)

    def test_threads_ask_once(self):
        with imds.Emulator(faults=["identity: delay 200ms"]) as vm:
            client, tokens = imds.Client(vm.url), []
            threads = [threading.Thread(target=lambda: tokens.append(client.token(RESOURCE))) for _ in range(12)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual((len(tokens), len(set(tokens)), len(vm.requests)), (12, 1, 1))
            self.assertEqual(vm.lint(), [])

    def test_threads_fail_together(self):
        with imds.Emulator(faults=["identity: delay 200ms 400 always"]) as vm:
            client, errors, begun = imds.Client(vm.url), [], time.monotonic()
            threads = [threading.Thread(target=lambda: errors.append(error_of(client.token, RESOURCE))) for _ in range(12)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(([type(each) for each in errors], len(set(map(str, errors)))), ([imds.Refused] * 12, 1))
            self.assertLess(len(vm.requests), 12)  # who comes later asks for himself
            self.assertLess(time.monotonic() - begun, 2)
            self.assertIsInstance(error_of(client.token, RESOURCE), imds.Refused)
            vm.recover()
            self.assertTrue(client.token(RESOURCE))

    def test_threads_that_waited_in_vain_say_why(self):
        for status in (410, 500):
            with imds.Emulator(faults=["identity: %d always" % status]) as vm:
                client, errors = imds.Client(vm.url, deadline=0.6), []
                threads = [threading.Thread(target=lambda: errors.append(error_of(client.token, RESOURCE)))  # noqa: B023
                           for _ in range(4)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                self.assertEqual([(type(each), each.status) for each in errors], [(imds.Unavailable, status)] * 4)

    def test_a_thread_waits_no_longer_than_its_own_patience(self):
        turn, shared = threading.Lock(), imds._Shared()
        turn.acquire()
        client = imds.Client(CLOSED, deadline=0.1)
        shared.turns = mock.Mock(setdefault=lambda key, lock: turn)
        with mock.patch.object(client, "_tokens", mock.Mock(get=lambda key: shared)):
            self.assertIn("another thread", str(error_of(client.token, RESOURCE)))

    def test_it_stays_with_its_endpoint(self):
        port = reserved_port(self)
        with imds.Emulator(port=port, identities=["user:one"]) as vm, mock.patch.dict(os.environ, vm.environ):
            first = imds.token(RESOURCE)
            vm.clock.advance(25 * 3600)
            self.assertNotEqual(imds.token(RESOURCE), first)
            vm.identities = []
            self.assertRaises(imds.Refused, imds.token, RESOURCE)
            self.assertRaises(imds.Refused, imds.token, RESOURCE, endpoint=vm.url)
        with imds.Emulator(port=port, identities=["user:two"]) as vm:
            for settings in ({}, {"AZURE_IMDS_ENDPOINT": vm.url}):
                with mock.patch.dict(os.environ, settings):
                    token = imds.token(RESOURCE, endpoint=None if settings else vm.url)
                self.assertEqual(claims(token)[1]["appid"], vm.identities[0]["clientId"])

    def test_of_the_vm_itself_it_is_shared(self):
        with imds.Emulator() as vm, mock.patch.dict(os.environ, clear=True):
            here = imds.Client(vm.url)
            with mock.patch.object(imds, "_client_of_this_vm", lambda: here):
                self.assertEqual(imds.token(RESOURCE), imds.token(RESOURCE))
                for settings in ({"endpoint": ""}, {"timeout": 0}, {"deadline": 0}):
                    self.assertRaises(ValueError, imds.token, RESOURCE, **settings)
            self.assertEqual(len(vm.requests), 1)
        self.assertIs(imds._client_of_this_vm(), imds._client_of_this_vm())
        self.assertEqual(imds._client_of_this_vm().endpoint, "http://169.254.169.254")

    def test_few_are_kept(self):
        with Script(token_answer(expires_on=None)) as server:
            client = Patient().client(server.url)
            with mock.patch.object(client, "_new_token", return_value=client._new_token(
                    "/metadata/identity/oauth2/token?x", client._call())):
                for number in range(2500):
                    client.token("resource%d" % number)
            self.assertLessEqual(len(client._tokens), 1000)
            with mock.patch.object(client, "_new_token", side_effect=imds.Refused("no")):
                for number in range(2500):
                    self.assertRaises(imds.Refused, client.token, "other%d" % number)
            self.assertLessEqual(len(client._tokens), 1000)

    def test_when_it_expires(self):
        now = 1700000000
        for values, seconds in (
            ({"expires_in": "3600", "expires_on": None}, 3600), ({"expires_in": 3600, "expires_on": None}, 3600),
            ({"expires_in": None, "expires_on": str(now + 3600)}, 3600), ({"expires_in": None, "expires_on": now + 3600}, 3600),
            ({"expires_in": "3600", "expires_on": str(now + 86400)}, 3600),
            ({"expires_in": "x", "expires_on": str(now + 3600)}, 3600),
        ):
            patient = Patient(now)
            with self.subTest(values=values), Script(token_answer(**values)) as server:
                client = patient.client(server.url)
                client.token(RESOURCE)
                for at, requests in ((seconds - 301, 1), (seconds - 299, 2)):
                    patient.now = at
                    with contextlib.suppress(imds.Error):
                        client.token(RESOURCE)
                    self.assertEqual(len(server.requests), requests)

    def test_what_is_not_a_token(self):
        for body in (b"[]", b"{}", b'{"access_token":5}', b"{", b'{"access_token":"t"}', b"null",
                     b'{"access_token":"","expires_in":"5"}', b'{"access_token":"t t","expires_in":"5"}',
                     b'{"access_token":"t\\n","expires_in":"5"}', b'{"access_token":["t"],"expires_in":"5"}',
                     b'{"access_token":"\\u00e9","expires_in":"5"}', b'{"access_token":null,"expires_in":"5"}'):
            with self.subTest(body=body), Script(reply(200, body)) as server, self.assertRaises(imds.NotIMDS):
                imds.Client(server.url).token("x")
        for expires in (b"NaN", b"Infinity", b"1e999", b"1" + b"0" * 400, b'"NaN"', b'"1e5"', b"-1", b'"-1"', b"null", b"[]",
                        b"true", b'"' + b"9" * 400 + b'"'):
            body = b'{"access_token":"t","expires_in":%s}' % expires
            with self.subTest(expires=expires[:20]), Script(reply(200, body)) as server, self.assertRaises(imds.NotIMDS):
                imds.Client(server.url).token("x")

    def test_its_answer_is_all_text(self):
        with Script(token_answer(expires_in=3600, more={"a": 1}, flag=True)) as server:
            answer = imds.Client(server.url).token_answer(RESOURCE)
        self.assertEqual(answer["expires_in"], "3600")
        with Script(reply(200, b'{"access_token":"t","expires_in":"5","client_id":null}')) as server:
            self.assertEqual(imds.Client(server.url).token_answer(RESOURCE)["client_id"], "")
        self.assertTrue(all(isinstance(value, str) for value in answer.values()))


SECRET = "eyJsecret"


class Secrets(unittest.TestCase):
    """Not a word of what the identity service says is in anything that a program may print."""

    def answers(self):
        body = ('{"access_token":"%s","expires_in":"86400"}' % SECRET).encode()
        whole = reply(200, body)
        yield from (
            body, b"HTTP/1.1 " + SECRET.encode() + b"\r\n\r\n", b"HTTP/1.1 400 " + SECRET.encode() + b"\r\n\r\n",
            whole.replace(b"application/json", b"text/plain"), reply(200, body, HTML), reply(200, body, "image/" + SECRET),
            whole.replace(b"Content-Length: ", b"Content-Length: 1"), whole.replace(b"Content-Length", b"Content-Lengths"),
            whole + b"x", whole[:-3], reply(200, body[:-1]), reply(200, b"\xff" + body), reply(200, b"[" + body),
            reply(200, b"[" * 5000 + body), reply(200, body.replace(b"_token", b"")), reply(200, body.replace(b'"}', b'\\n"}')),
            reply(200, body.replace(SECRET.encode(), SECRET.encode() + b" x")),
            reply(200, b'{"access_token":"t","expires_in":"%s"}' % SECRET.encode()),
            reply(200, b'{"%s":NaN}' % SECRET.encode()), reply(200, body + b" " * 5000000),
            reply(302, b"", HTML, ["Location: http://x/" + SECRET]),
            reply(200, body, "application/json", ["Content-Encoding: gzip", "Set-Cookie: " + SECRET]),
            b"HTTP/1.1 200 OK\r\n" + b"".join(b"X%d: %s\r\n" % (number, SECRET.encode()) for number in range(200)) + b"\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + SECRET.encode() + b"\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n" + SECRET.encode() + b"\r\n0\r\n" + b"x" * 70000,
            b"HTTP/1.1 200 OK\r\nX: " + SECRET.encode() * 10000 + b"\r\n\r\n", None,
        )
        for status in (400, 401, 403, 404, 405, 408, 410, 418, 429, 500, 503):
            yield reply(status, body)
            yield reply(status, body, HTML)
            yield reply(status, ('{"error":"invalid_request","error_description":"%s"}' % SECRET).encode())

    def check(self, error, where):
        seen, errors = [], [error]
        while errors:
            error = errors.pop()
            if error is None or error in seen:
                continue
            seen.append(error)
            for frame, _ in traceback.walk_tb(error.__traceback__):  # also what only those who walk the frames find
                errors += [each for each in frame.f_locals.values() if isinstance(each, Exception)]
                for each in frame.f_locals.values():
                    if isinstance(each, imds.Reply):
                        self.assertNotIn(SECRET.encode(), each.data, "answer %d: in a frame" % where)
                    self.assertNotIn(SECRET, str(getattr(each, "headers", "")), "answer %d: in a frame" % where)
            texts = [str(error), repr(error), repr(error.args), repr(vars(error))]
            texts += traceback.TracebackException(type(error), error, error.__traceback__, capture_locals=True).format()
            for text in texts:
                at = text.find(SECRET[:8])
                self.assertEqual(at, -1, "answer %d: %s" % (where, text[max(0, at - 200):at + 50]))
            errors += [error.__context__, error.__cause__]
        self.assertGreater(len(seen), 0)

    def test_a_token_at_another_path(self):
        for status in (400, 404, 418, 500):
            with Script(reply(status, b"so: eyJhbGciOiJSUzI1NiJ9.eyJ0ZXN0.AbC-_0 it is")) as server:
                error = error_of(Patient().client(server.url, deadline=2).get, "network")
            self.assertIn("so: (masked) it is", str(error))

    def test_errors(self):
        for at, answer in enumerate(self.answers()):
            for call in (lambda client: client.token(RESOURCE), lambda client: client.token_answer(RESOURCE, client_id="x"),
                         lambda client: client.get(TOKEN_PATH), lambda client: client.get("/metadata/identity/info")):
                with Script(answer) as server:
                    client = Patient().client(server.url, deadline=2)
                    try:
                        call(client)
                    except imds.Error as problem:
                        error = problem
                    else:  # as for JSON that is no token's, of a path that is given as it is
                        continue
                    answer = None  # what this test knows is in its own frame
                    self.check(error, at)
                    answer = server.answers[0]  # noqa: F841

    def test_what_is_kept_and_how_it_shows(self):
        with Script(token_answer(access_token=SECRET)) as server:
            client = imds.Client(server.url)
            client.token(RESOURCE)
            self.assertNotIn(SECRET, repr(client) + repr(vars(client)))

    def test_words_of_the_contract_may_be_shown(self):
        with Script(reply(400, b'{"error":"invalid_request","error_description":"Identity not found"}')) as server:
            error = error_of(imds.Client(server.url).token, RESOURCE)
        self.assertIn("Identity not found", str(error))
        self.assertEqual(error.body, '{"error":"invalid_request","error_description":"Identity not found"}')
        with Script(reply(400, b'{"error":"invalid_request","error_description":"Identity not found","x":"y"}')) as server:
            self.assertIsNone(error_of(imds.Client(server.url).token, RESOURCE).body)

    def test_however_the_path_is_spelled(self):
        for at, path in enumerate(("/metadata/Identity/oauth2/token?x", "/metadata//identity/oauth2/token?x",
                     "/metadata/%69dentity/oauth2/token?x", "/metadata/./identity/oauth2/token?x")):
            with Script(reply(400, SECRET.encode())) as server:
                self.check(error_of(imds.get, path, endpoint=server.url, deadline=1), at)

    def test_the_frames_of_a_snapshot_have_none(self):
        for answer in (reply(200, ('{"tenantId":"t","access_token":"%s"' % SECRET).encode()),
                       reply(200, ('{"tenantId":"t","access_token":"%s"}' % SECRET).encode()),
                       reply(200, ('["%s"]' % SECRET).encode()),
                       reply(200, ('{"tenantId":"t","access_token":"%s"}' % SECRET).encode(), TEXT)):
            def choose(request, answer=answer):
                return (answer if "/identity/info" in request else reply() if "/instance" in request else NO_EVENTS
                        if "scheduled" in request else reply(200, b"<html>", HTML))

            with Script(choose) as server:
                error = error_of(imds.Client(server.url).snapshot)
            frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == imds.__file__]
            self.assertTrue(frames)
            self.assertNotIn(SECRET, repr([frame.f_locals for frame in frames]))

    def test_a_snapshot_has_none(self):
        said = {"tenantId": "t", "access_token": SECRET}

        def choose(request):
            if "/identity/info" in request:
                return reply(200, json.dumps(said).encode())
            return reply() if "/instance" in request else reply(404, b"{}")

        with Script(choose) as server:
            self.assertEqual(imds.Client(server.url).snapshot()["identity"], {"tenantId": "t"})
            said["tenantId"] = {"access_token": SECRET}
            self.assertEqual(imds.Client(server.url).snapshot()["identity"], {"tenantId": ""})


class Attested(unittest.TestCase):
    def test_client(self):
        with imds.Emulator() as vm:
            document = imds.attested("1234567890", endpoint=vm.url)
            self.assertEqual(sorted(document), ["encoding", "signature"])
            self.assertEqual(imds.attested_content(document)["nonce"], "1234567890")
            content = imds.attested_content(imds.attested(endpoint=vm.url))
            self.assertEqual(content["vmId"], vm.get("compute/vmId"))
            self.assertEqual(imds.attested_content(vm.attested("1"))["nonce"], "1")

    def test_what_is_not_to_be_believed(self):
        for flaw, word in (("expired", "valid from"), ("nonce", "answers nonce"), ("vmId", "another VM")):
            with imds.Emulator(attested_flaw=flaw) as vm, self.assertRaises(imds.Refused) as caught:
                imds.attested("1234567890", endpoint=vm.url)
            self.assertIn(word, str(caught.exception))

    def test_by_the_time_of_the_client(self):
        with imds.Emulator() as vm:
            for ahead, good in ((0, True), (-290, True), (-310, False), (6 * 3600 - 60, True), (6 * 3600 + 60, False)):
                client = imds.Client(vm.url, clock=lambda: time.time() + ahead)  # noqa: B023
                if good:
                    client.attested("1")
                else:
                    self.assertRaises(imds.Refused, client.attested, "1")

    def test_what_is_not_an_attested_document(self):
        for body in (b"{}", b'{"signature":"!"}', b'{"signature":"MAAA"}', b"[]", b'{"signature":""}', b'{"signature":5}',
                     b'{"signature":"MA=="}', b'{"signature":"/////w=="}'):
            with self.subTest(body=body), Script(reply(200, body)) as server, self.assertRaises(imds.NotIMDS):
                imds.attested(endpoint=server.url)

    def signed(self, content):
        import base64

        data = imds.signed_data(content, b"x", imds.authority_certificate(imds.TEST_ISSUER_NAME))
        return json.dumps({"encoding": "pkcs7", "signature": base64.b64encode(data).decode()}).encode()

    def test_by_what_it_says(self):
        now = 1.7e9
        content = '{"nonce":"","timeStamp":{"createdOn":"%s","expiresOn":"%s"},"vmId":"%s"}'
        created, later, before = "11/14/23 22:13:20 -0000", "11/14/23 23:13:20 -0000", "11/14/23 22:12:20 -0000"
        vm_id = "13f56399-bd52-4150-9748-7190aae1ff21"
        for stamps, named, has, error in (
            ((created, later), vm_id, vm_id, None), ((created, later), vm_id.upper(), vm_id, None),
            ((created, later), "", "", imds.Refused), ((created, later), "x", vm_id, imds.Refused),
            (("11/14/23 22:16:40 -0000", "11/14/23 22:15:00 -0000"), vm_id, vm_id, imds.Refused),  # the end before the beginning
            ((created, before), vm_id, vm_id, imds.Refused),
        ):
            body = self.signed((content % (stamps + (named,))).encode())
            with self.subTest(stamps=stamps, named=named), Script(lambda request, body=body, has=has: reply(
                    200, body if "attested" in request else b'{"compute":{"vmId":"%s"}}' % has.encode())) as server:
                client = imds.Client(server.url, clock=lambda: now)
                self.assertIs(type(error_of(client.attested)) if error else client.attested() and None, error)
        for named, has in (('{"a": 1}', b'"{\'a\': 1}"'), ('"%s"' % vm_id, b'{"a":1}'), ('"%s"' % vm_id, b"[]")):
            body = self.signed((content.replace('"%s"}', '%s}') % (created, later, named)).encode())
            with Script(lambda request, body=body, has=has: reply(
                    200, body if "attested" in request else b'{"compute":{"vmId":%s}}' % has)) as server:
                self.assertIsInstance(error_of(imds.Client(server.url, clock=lambda: now).attested), (imds.NotIMDS, imds.Refused))
        for encoding in (b'["x"]', b'"jws"', b"null"):
            odd = self.signed((content % (created, later, vm_id)).encode()).replace(b'"pkcs7"', encoding)
            with Script(reply(200, odd)) as server:
                self.assertIsInstance(error_of(imds.Client(server.url, clock=lambda: now).attested), imds.NotIMDS)

    def test_a_message_is_not_as_long_as_an_answer(self):
        with Script(reply(200, b'{"a":1}', "text/" + "x" * 50000)) as server:
            self.assertLess(len(str(error_of(imds.get, endpoint=server.url))), 2100)

    def test_content_that_is_odd(self):
        good = '{"nonce":"","timeStamp":{"createdOn":"02/21/20 14:56:11 -0000","expiresOn":"%s"},"vmId":"x"}'
        for content in ("[" * 100000, "{}", "[]", "5", '{"nonce":"","vmId":"x"}', good % "soon", good % "99/99/99 0:0:0 -0000",
                        good.replace("02/21/20 14:56:11 -0000", "") % "", '{"timeStamp":5}', '{"nonce":NaN}', "\ufffe"):
            body = self.signed(content.encode())
            with self.subTest(content=content[:60]), Script(reply(200, body)) as server, self.assertRaises(imds.NotIMDS):
                imds.attested(endpoint=server.url)

    def test_its_base64_is_checked(self):
        with imds.Emulator() as vm:
            good = vm.attested()["signature"]
        imds.attested_content({"signature": good})
        for signature in (good[:40] + "!" + good[40:], good[:40] + "\n" + good[40:], "-" + good, "a b c d", "TUFB!", "*" * 8):
            with self.assertRaises(ValueError):
                imds.attested_content({"signature": signature})


class Whole(unittest.TestCase):
    def test_a_snapshot(self):
        with imds.Emulator(profile="scaleset", load_balancer=True) as vm:
            taken = imds.Client(vm.url).snapshot()
        self.assertEqual(list(taken), ["instance", "scheduledevents", "identity", "loadbalancer", "attested"])
        self.assertEqual(list(taken["identity"]), ["tenantId"])

    def test_every_part_is_replayed(self):
        with imds.Emulator(profile="scaleset", load_balancer=True) as vm:
            vm.schedule("Reboot", resources=["web_1", "web_2"], after=1000, duration=60, source="User", description="x")
            taken = imds.Client(vm.url).snapshot()
        with imds.Emulator(taken) as vm:
            again = imds.Client(vm.url).snapshot()
        self.assertEqual(again, taken)

    def test_recorded_events_are_replayed_byte_for_byte(self):
        recorded = ('{"DocumentIncarnation":213,"Events":[{"EventId":"FA298C74-AE95-4154-8EBF-303EED382DB6","EventStatus":'
                    '"Scheduled","EventType":"Reboot","ResourceType":"VirtualMachine","Resources":["aks-vmss_39"],'
                    '"NotBefore":"Tue, 30 Mar 2021 13:39:24 GMT","Description":"Virtual machine is going to be restarted '
                    'as requested by authorized user.","EventSource":"User"}]}')
        with imds.Emulator({"instance": {}, "scheduledevents": json.loads(recorded)}) as vm:
            target = "/metadata/scheduledevents?api-version=2019-08-01"
            self.assertEqual(imds.format_json(vm.get(target)), recorded)
            vm.clock.advance(100000)
            self.assertEqual(imds.format_json(vm.get(target)), recorded)
            imds.approve("FA298C74-AE95-4154-8EBF-303EED382DB6", endpoint=vm.url)
            vm.clock.advance(600)
            self.assertEqual(vm.get(target), {"DocumentIncarnation": 215, "Events": []})

    def test_parts_of_another_shape(self):
        for part in ("scheduledevents", "identity/info", "loadbalancer", "attested"):
            for body in (b"[]", b"5", b'"x"', b"true"):
                def choose(request, part=part, body=body):
                    return reply(200, body) if "/metadata/" + part in request else (
                        reply() if "/instance" in request else NO_EVENTS if "scheduledevents" in request else reply(404, b"{}"))

                with self.subTest(part=part, body=body), Script(choose) as server:
                    self.assertIsInstance(error_of(imds.Client(server.url, deadline=2).snapshot), imds.NotIMDS)

    def test_a_service_with_nothing_else(self):
        with imds.Emulator(as_of="2018", cloud="AzureChinaCloud", rate_limit=0) as vm:
            self.assertEqual(list(imds.Client(vm.url).snapshot()), ["instance", "scheduledevents"])

    def test_tokens_of_a_documents_identity(self):
        mine = {"type": "user", "clientId": "c", "objectId": "o", "resourceId": "/r"}
        with imds.Emulator({"instance": {}, "identity": {"tenantId": "t", "identities": [mine]}}) as vm:
            self.assertEqual(vm.get("/metadata/identity/info"), {"tenantId": "t"})
            body = claims(imds.Client(vm.url).token(RESOURCE))[1]
        self.assertEqual((body["appid"], body["oid"], body["tid"], body["xms_mirid"]), ("c", "o", "t", "/r"))
