"""Rooms 6 to 8 and 10: playbooks, every fault as clients see it, situations, --fault; no fault holds up another client."""

import contextlib
import http.client
import json
import shutil
import socket
import struct
import subprocess
import sys
import time
import unittest
import urllib.parse
from unittest import mock

import imds
from tests import support
from tests.support import HTML, JSON, TARGET, TEXT, TOKEN, VAULT, XML, Jump, Patient, Serve, Steps, V, ask, bench, run

INSTANCE = "/metadata/instance" + V
quick_drip = mock.patch("imds.DRIP_TIME", 0.00001)  # an answer that drips comes within a second
GONE = b"""<?xml version="1.0" encoding="utf-8"?>
<Error xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:xsd="http://www.w3.org/2001/XMLSchema">
    <Code>ResourceNotAvailable</Code>
    <Message>The resource requested is no longer available. Please refresh your cache.</Message>
    <Details></Details>
</Error>"""


def taken(of, count, target=INSTANCE, verb="GET"):
    """The steps that so many requests get, "-" where they go unharmed."""
    request = imds.Request(verb, target, {"metadata": "true"}, b"")
    return " ".join(of.respond(request).fault or "-" for _ in range(count))


class Playbooks(unittest.TestCase):
    def test_each_step_is_for_one_request(self):
        for playbook, faults in (
            ("500", "500 - -"),
            ("500 x2", "500 500 - -"),
            ("500 x3,404", "500 500 500 404 -"),
            ("500 x1, ok, 404 x1", "500 ok 404 -"),
            ("  429 ,ok,  503  ", "429 ok 503 -"),
            ("instance: 500 x2, 404, delay 3s, ok", "500 500 404 delay 3s ok ok -"),
            ("delay 300ms 500", "delay 0.3s 500 -"),
            ("delay 1m reset x2", "delay 60s reset delay 60s reset -"),
            ("delay 2 hang", "delay 2s hang -"),
            ("delay 1h", "delay 3600s ok -"),
            ("500 every 3", "- - 500 - - 500 - - 500"),
            ("500 every 1", "500 500 500"), ("404 every 500", "- - -"),
            ("404, 500 every 2", "404 - 500 - 500"),
            ("500 always", "500 " * 19 + "500"),
            ("ok x2, 410 always", "ok ok 410 410 410"),
            ("500 p 0", "- - - - - - - -"),
            ("500 p 1", "500 500 500 500"),
            ("portal, broken, cut, drip, huge, redirect", "portal broken cut drip huge redirect -"),
        ):
            with self.subTest(playbook=playbook):
                of = bench()
                of.fail(playbook)
                self.assertEqual(taken(of, len(faults.replace("delay ", "delay").replace("s ", "s").split())), faults)

    def test_for_a_time_on_the_clock(self):
        clock = Steps()
        for playbook, course in (  # seconds later, fault
            ("500 for 60s", "0 500, 0 500, 59 500, 1 -, 0 -"),
            ("500 for 1m, 404", "0 500, 59.5 500, 0.5 404, 0 -"),
            ("410 for 500ms", "0 410, 0.25 410, 0.25 -"),
            ("404, 500 for 10s, 503 for 10s", "0 404, 100 500, 9 500, 1 503, 9 503, 1 -"),  # it begins with its first
            ("500 for 10s, 404 for 10s, 403", "0 500, 3600 404, 3600 403, 0 -"),
            ("instance: 429 for 10", "3600 429, 9 429, 1 -"),
        ):
            with self.subTest(playbook=playbook):
                of = bench(clock=clock)
                of.fail(playbook)
                for seconds, fault in (row.split() for row in course.split(", ")):
                    clock.advance(float(seconds))
                    self.assertEqual(taken(of, 1), fault)
                self.assertEqual(of.faults(), [])

    def test_where(self):
        for playbook, hit, missed in (
            ("500 always", "GET instance, POST scheduledevents, PUT /latest/api/token, GET /", ""),
            ("instance: 500 always", "GET instance, GET instance/compute/name, PUT instance, GET /metadata//instance/",
             "GET identity/info, GET /instance, GET instances, GET versions"),
            ("instance/compute: 500 always", "GET instance/compute, GET instance/compute/name",
             "GET instance, GET instance/network, GET instance/computer"),
            ("/metadata/identity: 500 always", "GET identity/oauth2/token, POST identity/issuecredential", "GET instance"),
            ("metadata/versions : 500 always", "GET versions", "GET instance"),
            ("POST scheduledevents: 500 always", "POST scheduledevents", "GET scheduledevents, POST instance"),
            ("POST: 500 always", "POST scheduledevents, POST instance", "GET scheduledevents"),
            ("GET  identity/oauth2/token: 500 always", "GET identity/oauth2/token", "GET identity/info, POST identity"),
        ):
            of = bench()
            of.fail(playbook)
            for expected, requests in (("500", hit), ("-", missed)):
                for verb, path in (row.split() for row in filter(None, requests.split(", "))):
                    with self.subTest(playbook=playbook, verb=verb, path=path):
                        target = path if path.startswith("/") else "/metadata/" + path
                        self.assertEqual(taken(of, 1, target + V, verb), expected)

    def test_once_is_one_request_for_a_token(self):
        of = bench()
        of.fail("identity/oauth2/token: 429")
        self.assertEqual([ask(TOKEN + VAULT, of=of).status for _ in range(2)], [429, 200])

    def test_the_first_that_matches_and_is_not_over(self):
        of = bench()
        for playbook in ("instance: 500", "instance/compute: 404 x2", "429"):
            of.fail(playbook)
        self.assertEqual(of.faults(), ["instance: 500", "instance/compute: 404 x2", "429"])
        self.assertEqual(taken(of, 5, "/metadata/instance/compute" + V), "500 404 404 429 -")
        self.assertEqual(of.faults(), [])

    def test_chances_from_a_seed(self):
        def course(seed):
            of = bench()
            self.assertEqual(of.fail("500 p 0.2", seed=seed), {"playbook": "500 p 0.2", "seed": seed})
            return taken(of, 300)

        self.assertEqual(course(7), course(7))
        self.assertNotEqual(course(7), course(8))
        self.assertTrue(30 < course(7).count("500") < 90)
        of = bench()
        seed = of.fail("flaky")["seed"]  # chosen, and said
        again = bench()
        again.fail("500 p 0.2", seed=seed)
        self.assertEqual(taken(of, 100), taken(again, 100))

    def test_one_that_spares_a_request_leaves_it_to_the_next(self):
        of = bench()
        of.fail("500 every 3")
        of.fail("instance: 429 always")
        self.assertEqual(taken(of, 6), "429 429 500 429 429 500")

    def test_no_web_page_uses_up_a_step(self):
        with imds.Emulator(faults=["instance: 500"]) as vm:
            for host, status in (("evil.example", 400), ("localhost", 500), ("localhost", 200)):
                connection = http.client.HTTPConnection("127.0.0.1", vm.port, timeout=5)
                connection.request("GET", TARGET, headers={"Metadata": "true", "Host": host})
                self.assertEqual(connection.getresponse().status, status)
                connection.close()

    def test_a_mistake_says_where_and_what_could_stand_there(self):
        steps = "delay 3s or one of 400 403 404 410 429 500 502 503 504 portal huge redirect ok reset hang cut drip broken"
        often = "x2, for 60s, every 3, p 0.2 or always"
        components = "one of attested identity instance loadbalancer scheduledevents versions"
        path = "a path, like instance or POST scheduledevents"
        for playbook, words in (
            ("instanc: 500", "is wrong at 1: where 'instanc' stands there could be instance"),
            ("http://h/metadata/instance: 500", "is wrong at 1: where 'http://h/metadata/instance' stands there could be " + components),
            (" GET  x: 500", "is wrong at 7: where 'x' stands there could be " + components),
            ("identity/tokens: 500", "is wrong at 1: where 'identity/tokens' stands there could be identity/oauth2/token"),
            ("500 always, 404", "is wrong at 13: where '404' stands there could be nothing, for always never ends"),
            ("500 p 0.1, 404", "there could be nothing, for p never ends"),
            ("500 evry 404", "there could be " + often), ("500 delay 3s 404", "there could be " + often),
            ("429 500", "where '429 500' stands there could be a comma before 500"),
            ("instance: 410, delay 3s 500 for 5s reset", "is wrong at 16: where 'delay 3s 500 for 5s reset' stands there could be a "
                                                         "comma before reset"),
            ("", "is wrong at 1: where 'nothing' stands there could be " + steps),
            ("500,", "is wrong at 5: where 'nothing' stands there could be " + steps),
            ("501", "is wrong at 1: where '501' stands there could be " + steps),
            ("500, wrong", "is wrong at 6: where 'wrong' stands there could be " + steps),
            ("instance:  500, 404,x2", "is wrong at 21: where 'x2' stands there could be " + steps),
            ("delay", "is wrong at 1: where 'delay' stands there could be a time, like in delay 3s"),
            ("ok, delay soon", "is wrong at 5: where 'delay soon' stands there could be a time, like in delay 3s"),
            ("delay -1s", "could be a delay of at most a day"), ("delay 25h 500", "could be a delay of at most a day"),
            ("instance: 500 twice", "is wrong at 11: where '500 twice' stands there could be " + often + ", behind 500"),
            ("delay 3s delay 3s", "there could be " + often + ", behind a delay"),
            ("500 x2 x3", "there could be " + often), ("500 p 2", "there could be " + often),
            ("500 every", "there could be " + often), ("500 for", "there could be " + often),
            ("500 x0", "a number from 1, behind x"), ("500 every 0", "a number from 1, behind every"),
            ("500 for ever", "there could be for 60s"),
            (" GTE instance: 500", "is wrong at 2: where 'GTE' stands there could be GET"),
            ("XY: 500", "where 'XY' stands there could be one of GET HEAD POST PUT DELETE OPTIONS PATCH TRACE CONNECT"),
            ("instance: flaky", "is wrong at 11: where 'flaky' stands there could be 500 p 0.2; a situation stands alone"),
            ("ok, flakey", "there could be the situation flaky, alone"),
            (": 500", "at 1: where 'nothing' stands there could be " + path), ("a b: 500", "where 'a b' stands there could be " + path),
            ("one: two: 500", "where 'one: two' stands there could be " + path),
        ):
            with self.subTest(playbook=playbook):
                of = bench()
                with self.assertRaises(ValueError) as caught:
                    of.fail(playbook)
                self.assertIn(words, str(caught.exception))
                self.assertEqual(of.faults(), [])
        for wrong in (None, 5, ["500"], {"500": 1}):
            with self.subTest(wrong=wrong), self.assertRaises((ValueError, TypeError)):
                bench().fail(wrong)
        with self.assertRaisesRegex(ValueError, "seed"):
            bench().fail("500", seed="one")

    def test_no_time_that_is_none(self):
        for playbook in ("500 for 0s", "500 for -1s"):
            with self.subTest(playbook=playbook), self.assertRaises(ValueError):
                bench().fail(playbook)

    def test_recover_ends_all(self):
        of = bench()
        of.fail("500 always")
        of.fail("instance: 404 for 60s")
        self.assertEqual(taken(of, 2), "500 500")
        of.recover()
        self.assertEqual((of.faults(), taken(of, 2)), ([], "- -"))


class Bodies(unittest.TestCase):
    NAMES = ("instance", "identity/oauth2/token", "loadbalancer", "scheduledevents")

    def test_each_status_with_the_words_of_the_service(self):
        for status, content_type, body in (
            (400, JSON, b'{ "error": "Bad request" }'), (403, TEXT, b""), (404, JSON, b'{ "error": "Not found" }'),
            (410, XML, GONE), (429, JSON, b'{ "error": "Too many requests" }'), (500, JSON, b'{ "error": "Server error" }'),
            (502, JSON, b'{ "error": "Bad gateway" }'), (503, JSON, b'{ "error": "Service unavailable" }'),
            (504, JSON, b'{ "error": "Gateway timeout" }'),
        ):
            own = {
                (400, "identity/oauth2/token"): b'{"error":"invalid_request","error_description":"Bad request"}',
                (404, "identity/oauth2/token"): b'{"error":"Not Found"}',
                (429, "identity/oauth2/token"): b'{"error":"invalid_request","error_description":"Temporarily throttled, too'
                                                b' many requests"}',
                (404, "loadbalancer"): b'{ "error": "API is not found: Path = \\"/metadata/loadbalancer\\",'
                                       b' Method = \\"GET\\"" }',
                (500, "identity/oauth2/token"): b'{"error":"unknown","error_description":"Failed to retrieve token from the'
                                                b' Active directory. For details see logs in <file path>"}',
                (503, "loadbalancer"): b'{ "error": "Internal service unavailable. Please retry later" }',
            }
            for name in self.NAMES:
                with self.subTest(status=status, name=name):
                    of = bench()
                    of.fail("%s: %d" % (name, status))
                    response = ask("/metadata/%s%s" % (name, V), of=of)
                    self.assertEqual((response.status, response.body), (status, own.get((status, name), body)))
                    headers = dict(response.headers)
                    self.assertEqual((headers["Content-Type"], headers["Content-Length"]),
                                     (content_type, str(len(response.body))))
                    of_service = status not in (403, 410)  # which come from before the service
                    self.assertEqual("x-ms-request-id" in headers, of_service)
                    self.assertEqual("IMDS" in headers.get("Server", ""), of_service)
        self.assertEqual(len(GONE), 313)

    def test_each_manner_changes_what_is_sent(self):
        request = "GET %s HTTP/1.1\r\nHost: localhost\r\nMetadata: true\r\n\r\n" % TARGET

        def sent(manner):
            talk = imds.Conversation(bench(faults=["instance: " + manner]))
            return talk.receive(request.encode()), talk.ending

        self.assertEqual([manner for manner in imds.FAULT_MANNERS if sent(manner) == sent("ok")], ["ok"])

    def test_throttled_as_text(self):
        of = bench()
        of.fail("429")
        self.assertEqual(ask(TARGET, of=of).body, b"Too many requests")  # cloud-netconfig compares the whole of it

    def test_the_others(self):
        for step, status, content_type, check in (
            ("portal", 200, HTML, lambda body: body.startswith(b"<!DOCTYPE html>")),
            ("redirect", 302, HTML, lambda body: body.startswith(b"<!DOCTYPE html>")),
            ("huge", 200, JSON, lambda body: len(body) > 4 * 1024 * 1024 and json.loads(body.decode())["compute"]["name"]),
            ("ok", 200, JSON, lambda body: json.loads(body.decode())["compute"]["name"] == "avset2"),
        ):
            with self.subTest(step=step):
                of = bench()
                of.fail(step)
                response = ask(INSTANCE, of=of)
                headers = dict(response.headers)
                self.assertEqual((response.status, headers["Content-Type"]), (status, content_type))
                self.assertEqual(int(headers["Content-Length"]), len(response.body))
                self.assertTrue(check(response.body))
                self.assertEqual(headers.get("Location"), "/redirected" + INSTANCE if step == "redirect" else None)
        of = bench()
        of.fail("broken")
        broken, whole = ask(INSTANCE, of=of), ask(INSTANCE, of=of)
        self.assertEqual(broken.body, whole.body[:len(whole.body) // 2])
        self.assertEqual(dict(broken.headers)["Content-Length"], str(len(broken.body)))
        self.assertRaises(ValueError, json.loads, broken.body.decode())

    def test_what_is_sent(self):
        for step, request, ending, expected in (  # expected: of the seconds and the bytes that go back
            ("403", "", "close", lambda sent, data: b"\r\nConnection: close\r\n" in data and data.endswith(b"\r\n\r\n")),
            ("500", "", "", lambda sent, data: b"Connection" not in data and data.endswith(b'{ "error": "Server error" }')),
            ("reset", "", "reset", lambda sent, data: data == b""),
            ("hang", "", "hang", lambda sent, data: data == b""),
            ("cut", "", "close", lambda sent, data: data.startswith(b"HTTP/1.1 200 OK\r\n") and data.endswith(b"avs")),
            ("drip", "", "", lambda sent, data: len(sent) > 200 and {len(part) for _, part in sent} == {1}
                and all(0 < seconds < 1 for seconds, _ in sent[1:]) and data.endswith(b"avset2")),
            ("delay 3s", "", "", lambda sent, data: [seconds for seconds, _ in sent] == [3] and data.endswith(b"avset2")),
            ("delay 3s 403", "", "close", lambda sent, data: [seconds for seconds, _ in sent] == [3]),
            ("delay 3s reset", "", "reset", lambda sent, data: [seconds for seconds, _ in sent] == [3] and not data),
            ("delay 3s drip", "", "", lambda sent, data: sent[0][0] == 3 and sent[1][0] < 1),
            ("portal", "Connection: close\r\n", "close", lambda sent, data: b"\r\nConnection: close\r\n" in data),
            ("redirect", "", "", lambda sent, data: data.startswith(b"HTTP/1.1 302 Found\r\n")),
        ):
            with self.subTest(step=step):
                of = bench()
                of.fail(step)
                talk = imds.Conversation(of)
                head = "GET %s HTTP/1.1\r\nHost: localhost\r\nMetadata: true\r\n%s\r\n" % (TARGET, request)
                sent = talk.receive(head.encode())
                self.assertEqual(talk.ending, ending)
                self.assertTrue(expected(sent, b"".join(part for _, part in sent)), sent)

    def test_what_was_answered_before_fails_all_the_same(self):
        of = bench()
        talk = imds.Conversation(of)
        request = ("GET %s HTTP/1.1\r\nHost: localhost\r\nMetadata: true\r\n\r\n" % TARGET).encode()

        def statuses(count):
            return [int(talk.receive(request)[0][1].split()[1]) for _ in range(count)]

        self.assertEqual(statuses(3), [200, 200, 200])
        of.fail("500 x2, 404 every 2")
        self.assertEqual(statuses(7), [500, 500, 200, 404, 200, 404, 200])
        of.recover()
        self.assertEqual(statuses(3), [200, 200, 200])

    def test_an_approval_that_is_refused_starts_nothing(self):
        for playbook, started in (("POST scheduledevents: 500", "Scheduled"), ("POST scheduledevents: portal", "Scheduled"),
                                  ("reset", "Started"), ("hang", "Started")):  # the answer is lost, not the request
            with self.subTest(playbook=playbook):
                of = bench()
                event_id = of.schedule("Reboot")
                of.fail(playbook)
                body = json.dumps({"StartRequests": [{"EventId": event_id}]}).encode()
                ask("/metadata/scheduledevents?api-version=2020-07-01", verb="POST", body=body, of=of)
                self.assertEqual(of.events()["Events"][0]["EventStatus"], started)


class Situations(unittest.TestCase):
    def test_each(self):
        clock = Steps()
        for name, target, course in (
            ("booting", INSTANCE, "0 404, 0 404, 0 404, 0 -"),
            ("migrating", INSTANCE, "0 410, 59 410, 1 -"),
            ("throttled", INSTANCE, "0 429, 9 429, 1 -"),
            ("captive-portal", INSTANCE, "0 portal, 3600 portal"),
            ("dead", INSTANCE, "0 hang, 3600 hang"),
            ("denied", INSTANCE, "0 403, 3600 403"),
            ("cold-events", "/metadata/scheduledevents?api-version=2020-07-01", "0 delay+120s+ok, 0 -"),
            ("cold-events", INSTANCE, "0 -"),
        ):
            with self.subTest(name=name):
                of = bench(clock=clock)
                of.fail(name)
                for seconds, fault in (row.split() for row in course.split(", ")):
                    clock.advance(float(seconds))
                    self.assertEqual(taken(of, 1, target), fault.replace("+", " "))
        of = bench()
        of.fail("flaky")
        self.assertTrue(120 < taken(of, 1000).count("500") < 280)
        self.assertEqual(sorted(imds.SITUATIONS), "booting captive-portal cold-events dead denied flaky migrating "
                                                  "throttled".split())

    def test_help(self):
        code, out, _ = run("serve", "--help-situations")
        self.assertEqual(code, 0)
        for name in "booting migrating flaky throttled captive-portal dead denied cold-events".split():
            self.assertRegex(out, r"(?m)^  %s +\S" % name)
        for word in "400 403 404 410 429 500 502 503 504 delay reset hang cut drip portal broken huge redirect ok x2".split():
            self.assertRegex(out, r"(?m)\b%s\b" % word)


class OneEmulator(unittest.TestCase):
    """One for all the tests of a class, put back before each."""

    @classmethod
    def setUpClass(cls):
        cls.vm = imds.Emulator().start()

    @classmethod
    def tearDownClass(cls):
        cls.vm.stop()

    def setUp(self):
        self.vm.reset()


class ClientsOfOurs(OneEmulator):
    """The real client, with a time of its own, against each fault over a socket."""

    def test_what_it_makes_of_each(self):
        for playbook, expected, pauses in (  # what comes, or the exception; how often it waits
            ("ok", "avset2", 0), ("delay 50ms", "avset2", 0),
            ("500 x2", "avset2", 2), ("502", "avset2", 1), ("503, 504", "avset2", 2), ("429", "avset2", 1),
            ("410 x2", "avset2", 2), ("404", "avset2", 1), ("reset", "avset2", 1), ("delay 50ms reset", "avset2", 1),
            ("cut", "avset2", 1),
            ("400 always", imds.Refused, 0), ("403 always", imds.Refused, 0), ("404 always", imds.Error, 6),
            ("500 always", imds.Unavailable, 6),
            ("429 always", imds.Unavailable, 6), ("410 always", imds.Unavailable, 9),
            ("portal always", imds.NotIMDS, 0), ("broken always", imds.NotIMDS, 0), ("huge always", imds.NotIMDS, 0),
            ("redirect always", imds.NotIMDS, 0), ("reset always", imds.Unreachable, 6),
        ):
            with self.subTest(playbook=playbook):
                self.vm.recover()
                self.vm.fail(playbook)
                patient = Patient()
                client = patient.client(self.vm.url)
                if isinstance(expected, str):
                    self.assertEqual(client.get("compute/name"), expected)
                else:
                    self.assertRaises(expected, client.get, "compute")
                if pauses < 6:
                    self.assertEqual(len(patient.pauses), pauses)
                else:
                    self.assertGreaterEqual(len(patient.pauses), 3)

    @quick_drip
    def test_a_byte_at_a_time(self):
        self.vm.fail("drip x2")
        self.assertEqual(imds.Client(self.vm.url).get(TARGET), "avset2")
        self.assertRaises(imds.Unreachable, imds.get, "compute", endpoint=self.vm.url, deadline=0.1)

    def test_a_hang_ends_with_its_patience(self):
        self.vm.fail("hang always")
        began = time.monotonic()
        with self.assertRaises(imds.Unreachable):
            imds.get("compute/name", endpoint=self.vm.url, deadline=0.3)
        self.assertLess(time.monotonic() - began, 2)

    def test_a_token_under_faults(self):
        self.vm.fail("identity: 429, 500, 410")
        self.assertTrue(Patient().client(self.vm.url).token("https://vault.azure.net").startswith("eyJ"))
        self.vm.fail("identity: broken always")
        with self.assertRaises(imds.Error) as caught:
            Patient().client(self.vm.url).token("https://vault.azure.net")
        self.assertNotIn("eyJ", str(caught.exception))


class RawClients(OneEmulator):
    def connect(self, timeout=5):
        client = socket.create_connection(("127.0.0.1", self.vm.port), timeout=timeout)
        self.addCleanup(client.close)
        return client

    def ask(self, client, target=TARGET, more=""):
        client.sendall(("GET %s HTTP/1.1\r\nHost: localhost\r\nMetadata: true\r\n%s\r\n" % (target, more)).encode())

    def all_of(self, client):
        data = b""
        with contextlib.suppress(socket.timeout):
            while True:
                chunk = client.recv(1 << 20)
                if not chunk:
                    return data
                data += chunk
        raise AssertionError("the connection is still open after %r" % data[-200:])

    def test_over_a_socket(self):
        for playbook, expected in (
            ("403", lambda data: data.startswith(b"HTTP/1.1 403 Forbidden\r\n") and data.endswith(b"\r\n\r\n")
                and b"\r\nContent-Length: 0\r\n" in data and b"\r\nConnection: close\r\n" in data),
            ("cut", lambda data: data.endswith(b"\r\n\r\navs") and b"\r\nContent-Length: 6\r\n" in data),
        ):
            with self.subTest(playbook=playbook):
                self.vm.fail(playbook)
                client = self.connect()
                self.ask(client)
                data = self.all_of(client)
                self.assertTrue(expected(data), data)

    def test_reset(self):
        for playbook in ("reset", "delay 20ms reset"):
            with self.subTest(playbook=playbook):
                self.vm.fail(playbook)
                client = self.connect()
                self.ask(client)
                self.assertRaises(ConnectionResetError, client.recv, 100)

    def test_hang_says_nothing_and_leaves_the_connection(self):
        self.vm.fail("hang")
        client = self.connect(0.1)
        self.ask(client)
        self.ask(client)  # what it says then is not heard
        self.assertRaises(socket.timeout, client.recv, 100)
        self.assertEqual(len(self.vm.requests), 1)

    def test_hang_outlasts_every_limit(self):
        self.vm.fail("hang")
        self.vm.fail("instance: delay 600s")
        hung, late = self.connect(0.2), self.connect(0.2)
        self.ask(hung)
        self.vm.wait_for("/metadata/instance/compute/name")
        self.ask(late)
        with Jump() as jump:
            deadline = time.time() + 3
            while len(self.vm.requests) < 2 and time.time() < deadline:
                time.sleep(0.01)
            for _ in range(3):
                jump(100)
                self.vm.get("compute/name")  # a turn of the loop, and its sweep
            for client in (hung, late):
                self.assertRaises(socket.timeout, client.recv, 100)
            jump(600)
            self.vm.get("compute/name")
            late.settimeout(3)
            self.assertTrue(late.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n"))

    def test_few_pieces_of_a_large_answer(self):
        of = bench({"compute": {"userData": "a" * 1000000}})
        of.fail("drip")
        pieces = imds.Conversation(of).receive(
            ("GET /metadata/instance%s HTTP/1.1\r\nHost: localhost\r\nMetadata: true\r\n\r\n" % V).encode())
        self.assertEqual((len(pieces), {len(piece) for _, piece in pieces[:-1]}), (65536, {1}))
        self.assertGreater(len(pieces[-1][1]), 900000)

    def test_drip_is_the_whole_answer_in_time(self):
        self.vm.fail("drip")
        client = self.connect()
        self.ask(client, more="Connection: close\r\n")
        began, pieces = time.monotonic(), []
        while sum(map(len, pieces)) < 12:
            pieces.append(client.recv(65536))
        self.assertGreater(time.monotonic() - began, 0.1)
        self.assertTrue(len(pieces) > 6, pieces)
        self.assertTrue(b"".join(pieces).startswith(b"HTTP/1.1 200"), pieces)

    @quick_drip
    def test_a_delayed_answer_keeps_the_order(self):
        for playbook in ("instance: delay 100ms", "instance: delay 100ms x3", "ok, delay 100ms, ok, delay 50ms drip"):
            with self.subTest(playbook=playbook):
                self.vm.recover()
                self.vm.fail(playbook)
                client, paths = self.connect(), ["name", "location", "vmSize", "offer", "sku"]
                for path in paths[:-1]:
                    self.ask(client, TARGET.replace("name", path))
                self.ask(client, TARGET.replace("name", paths[-1]), "Connection: close\r\n")
                bodies = [part.partition(b"\r\n\r\n")[2].decode() for part in self.all_of(client).split(b"HTTP/1.1 200 OK")]
                compute = self.vm.instance["compute"]
                self.assertEqual(bodies[1:], [compute[path] for path in paths])

    def test_500_clients_that_hang_hold_up_nobody(self):
        self.vm.fail("instance/network: hang always")
        hung = []
        for _ in range(min(500, (support.most_files() - 100) // 2)):  # both ends are ours
            hung.append(self.connect())
            self.ask(hung[-1], "/metadata/instance/network" + V)
        self.vm.wait_for("/metadata/instance/network", times=len(hung))
        client, began = self.connect(), time.monotonic()
        for _ in range(200):
            self.ask(client)
            self.assertTrue(client.recv(65536).endswith(b"avset2"))
        self.assertLess(time.monotonic() - began, 2)

    def test_no_slow_fault_holds_up_anybody(self):
        for playbook in ("delay 600s", "drip", "delay 600s drip", "delay 600s reset", "hang"):
            with self.subTest(playbook=playbook):
                self.vm.recover()
                self.vm.fail("instance/network: " + playbook)
                slow = self.connect()
                self.ask(slow, "/metadata/instance/network" + V)
                began = time.monotonic()
                for _ in range(20):
                    client = self.connect()
                    self.ask(client, more="Connection: close\r\n")
                    self.assertTrue(self.all_of(client).endswith(b"avset2"))
                self.assertLess(time.monotonic() - began, 1)

    def test_a_client_that_gave_up_is_dropped(self):
        for playbook in ("hang", "delay 600s", "drip"):
            for gone in ("closed", "reset"):
                with self.subTest(playbook=playbook, gone=gone):
                    self.vm.recover()
                    self.vm.fail(playbook)
                    with self.connect() as client:
                        before = len(self.vm._server.connections)
                        self.ask(client)
                        deadline = time.monotonic() + 3
                        while self.vm.faults() and time.monotonic() < deadline:
                            time.sleep(0.005)
                        if gone == "reset":
                            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    deadline = time.monotonic() + 3
                    while len(self.vm._server.connections) >= max(before, 1) and time.monotonic() < deadline:
                        time.sleep(0.005)
                    self.assertLess(len(self.vm._server.connections), max(before, 1))

    def test_one_that_sends_on_and_on_while_it_waits(self):
        self.vm.fail("delay 600s")
        client = self.connect()
        self.ask(client)
        with self.assertRaises(OSError):
            for _ in range(200):
                client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000)
                time.sleep(0.001)

    def test_stop_ends_what_waits(self):
        with imds.Emulator(faults=["hang", "delay 600s always"]) as vm:
            clients = [socket.create_connection(("127.0.0.1", vm.port), timeout=5) for _ in range(2)]
            for client in clients:
                self.addCleanup(client.close)
                self.ask(client)
            vm.wait_for("/metadata/instance/compute/name", times=2)
            began = time.monotonic()
        self.assertLess(time.monotonic() - began, 1)
        for client in clients:
            with contextlib.suppress(ConnectionResetError):
                self.assertEqual(client.recv(100), b"")


@unittest.skipUnless(shutil.which("curl"), "curl is not there")
class Curl(unittest.TestCase):
    @quick_drip
    def test_exit_codes_and_what_it_prints(self):
        with imds.Emulator() as vm:
            for playbook, code, out in (
                ("ok", 0, "200 avset2"), ("delay 50ms", 0, "200 avset2"), ("drip", 0, "200 avset2"),
                ("400", 22, "400 "), ("403", 22, "403 "), ("404", 22, "404 "), ("410", 22, "410 "), ("429", 22, "429 "),
                ("500", 22, "500 "), ("502", 22, "502 "), ("503", 22, "503 "), ("504", 22, "504 "),
                ("reset", 56, ""), ("hang", 28, ""), ("delay 9s", 28, ""), ("cut", 18, "200 avs"), ("portal", 0, "200 <!"),
                ("broken", 0, "200 avs"), ("redirect", 0, "302 <!"), ("huge", 63, ""),
            ):
                with self.subTest(playbook=playbook):
                    vm.recover()
                    vm.fail(playbook)
                    most = "0.3" if code == 28 else "10"
                    done = subprocess.run(
                        ["curl", "--noproxy", "*", "-sf", "-m", most, "--max-filesize", "4000000", "-H", "Metadata: true",
                         "-w", "\n%{http_code}", vm.url + TARGET], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                    self.assertEqual(done.returncode, code)
                    body, _, status = done.stdout.decode().rpartition("\n")
                    said = "%s %s" % (status, body) if out else ""
                    self.assertTrue(said.startswith(out) and said.startswith("200 avs") <= (said == out), said[:200])


class CommandLine(unittest.TestCase):
    def test_serve_fault(self):
        with Serve("--quiet", "--fault", "instance: 500 x2", "--fault", "migrating", "--fault", "versions: 500 p 0.5") as vm:
            statuses = []
            for path in ("/metadata/instance", "/metadata/instance", "/metadata/instance", "/metadata/versions"):
                client = socket.create_connection((urllib.parse.urlsplit(vm.url).hostname,
                                                   urllib.parse.urlsplit(vm.url).port), timeout=5)
                with client:
                    client.sendall(("GET %s%s HTTP/1.1\r\nHost: localhost\r\nMetadata: true\r\n\r\n" % (path, V)).encode())
                    statuses.append(int(client.recv(65536).split()[1]))
            code, _, errors = vm.finish()
        self.assertEqual(statuses, [500, 500, 410, 410])
        self.assertEqual(code, 0)
        self.assertRegex(errors, r"(?m)^imds: fault versions: 500 p 0\.5, seed \d+$")

    def test_a_seed_brings_the_same_chances_again(self):
        asking = ("import http.client, os\n"
                  "for _ in range(20):\n"
                  "    client = http.client.HTTPConnection(os.environ['AZURE_IMDS_ENDPOINT'][len('http://'):])\n"
                  "    client.request('GET', '/metadata/versions', headers={'Metadata': 'true'})\n"
                  "    print(client.getresponse().status)\n"
                  "    client.close()\n")
        for faults, seed in ((["404 p 0.5"], 5), (["instance: 500", "404 p 0.5"], 6)):
            options = [word for fault in faults for word in ("--fault", fault)] + ["--seed", "5"]
            code, out, errors = run("exec", *options + ["--", sys.executable, "-c", asking])
            self.assertEqual((code, set(out.split())), (0, {"200", "404"}))
            self.assertIn("404 p 0.5, seed %d\n" % seed, errors)
            self.assertEqual(run("exec", *options + ["--", sys.executable, "-c", asking]), (code, out, errors))

    def test_the_log_names_the_fault(self):
        with Serve("--fault", "delay 10ms 400") as vm:
            self.assertEqual(run("get", "compute/name", env={"AZURE_IMDS_ENDPOINT": vm.url})[0], 1)
            errors = vm.finish()[2]
        self.assertRegex(errors, r'" 400 fault: delay 0\.01s 400\n')

    def test_exec_fault(self):
        for faults, code in ((["identity: 500 always", "instance: 400"], 1), (["ok", "captive-portal"], 0), (["captive-portal"], 5)):
            with self.subTest(faults=faults):
                options = [word for fault in faults for word in ("--fault", fault)]
                done = run("exec", *options + ["--", sys.executable, imds.__file__, "get", "compute/name", "--timeout", "1"])
                self.assertEqual(done[0], code, done[2])

    def test_a_mistake_is_a_usage_error(self):
        for command in (["serve", "--port", "0"], ["exec"]):
            tail = ["--", "true"] if command == ["exec"] else []
            code, out, errors = run(*command + ["--fault", "instance: 5oo"] + tail)
            self.assertEqual((code, out), (2, ""))
            self.assertIn("the playbook 'instance: 5oo' is wrong at 11: where '5oo' stands", errors)
