"""Room 6, and 8 for wait_for: the journal, what a test asserts of it, and reset."""

import json
import re
import sys
import threading
import time
import unittest
import urllib.request

import imds
from tests.support import EVENTS, OK, TARGET, TOKEN, VAULT, Steps, V, ask, bench, run

NAME = "/metadata/instance/compute/name"


def send(vm, target, headers=OK, body=None):
    """Ask an emulator over a socket; the status."""
    request = urllib.request.Request(vm.url + target, data=body, headers=dict(headers))
    try:
        return urllib.request.urlopen(request, timeout=5).getcode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code


class Requests(unittest.TestCase):
    def test_newest_last_a_line_each(self):
        of = bench()
        of.fail("identity: delay 300ms 500")
        for target, headers, verb, line in (
            (TARGET, OK, "GET", r"1  \d\d:\d\d:\d\d  GET %s  200" % re.escape(TARGET)),
            (TARGET, {}, "GET", r"2  \d\d:\d\d:\d\d  GET %s  400  Metadata header missing" % re.escape(TARGET)),
            ("/metadata/instance" + V, dict(OK, **{"user-agent": "me/1"}), "GET",
             r"3  \d\d:\d\d:\d\d  GET /metadata/instance%s  200  by me/1" % re.escape(V)),
            (TOKEN + VAULT, OK, "GET", r"4  .*  GET /metadata/identity/oauth2/token.*  500  internal error  "
                                       r"\(fault: delay 0\.3s 500\)"),
            ("/metadata/instance" + V, OK, "PUT", r"5  .*  PUT /metadata/instance.*  405  verb not allowed"),
            ("/metadata/instance", OK, "GET", r"6  .*  400  api-version missing or unknown"),
            ("/", dict(OK, **{"user-agent": "a\x1b[31m\n"}), "GET", r"7  .*  GET /  404  outside /metadata  by a[^\x1b\n]+"),
        ):
            with self.subTest(line=line):
                ask(target, headers, verb, of=of)
                self.assertRegex(str(of.requests()[-1]), r"\A%s\Z" % line)
        self.assertEqual([each.number for each in of.requests()], [1, 2, 3, 4, 5, 6, 7])

    def test_the_record(self):
        of = bench(clock=Steps(1000), vm=3)
        of.fail("delay 2s 404")
        of.respond(imds.Request("POST", "/metadata/instance" + V, {"metadata": "true"}, b"caf\xc3\xa9 \xff"), "10.0.0.9")
        self.assertEqual(of.requests()[0].as_dict(), {
            "number": 1, "time": 1000, "peer": "10.0.0.9", "vm": 3, "verb": "POST", "target": "/metadata/instance" + V,
            "headers": {"metadata": "true"}, "body": "caf\u00e9 \ufffd", "status": 404, "rule": "path",
            "fault": "delay 2s 404", "seconds": 2.0})
        json.dumps(of.requests()[0].as_dict())
        self.assertEqual(of.requests()[0]._fields, ("number", "time", "peer", "vm", "request", "response", "rule", "fault",
                                                    "seconds"))

    def test_which(self):
        of = bench()
        for target, headers, verb in (
            (NAME + V + "&format=text", {"metadata": "true"}, "GET"), (NAME + "?api-version=2020-09-01", {}, "GET"),
            ("/metadata/instance" + V, {"metadata": "true"}, "GET"), (EVENTS, {"metadata": "true"}, "POST"),
            ("/metadata//instance/" + V, {"metadata": "TRUE"}, "GET"), ("/", {}, "GET"),
        ):
            ask(target, headers, verb, of=of)
        for path, settings, numbers in (
            (None, {}, [1, 2, 3, 4, 5, 6]), (NAME, {}, [1, 2]), ("/metadata/instance", {}, [3, 5]), ("/", {}, [6]),
            ("/metadata", {}, []), (None, {"verb": "POST"}, [4]), (NAME, {"verb": "POST"}, []),
            (None, {"headers": {"Metadata": "true"}}, [1, 3, 4]), (NAME, {"headers": {"METADATA": "true"}}, [1]),
            (None, {"query": {"api-version": "2021-02-01"}}, [1, 3, 5]), (None, {"query": {"format": "text"}}, [1]),
            (NAME + "?api-version=2020-09-01", {}, [2]), (NAME + "?format=text", {"query": {"api-version": "x"}}, []),
            (None, {"since": 4}, [5, 6]), ("/metadata/instance", {"since": 3}, [5]), (None, {"since": 6}, []),
        ):
            with self.subTest(path=path, settings=settings):
                self.assertEqual([each.number for each in of.requests(path, **settings)], numbers)

    def test_secrets_are_masked(self):
        of = bench()
        token = json.loads(ask(TOKEN + VAULT, dict(OK, authorization="Bearer hush"), of=of).body.decode())["access_token"]
        ask(TARGET, dict(OK, authorization="Basic aHVzaA=="), of=of)
        of.fail("broken")
        self.assertIn(b"eyJ", ask(TOKEN + VAULT, of=of).body)
        kept = repr(of.requests()) + json.dumps([each.as_dict() for each in of.requests()]) + "".join(map(str, of.requests()))
        for secret in (token, token[:40], "eyJ", "hush", "aHVzaA"):
            self.assertNotIn(secret, kept)
        self.assertIn("(masked)", of.requests()[0].response.body.decode())
        self.assertEqual(of.requests()[1].request.headers["authorization"], "(masked)")

    def test_other_secrets_are_masked(self):
        of = bench()
        ask(TARGET, dict(OK, **{"proxy-authorization": "Basic hush"}), of=of)
        for name in ("identity", "%69dentity"):
            ask("/metadata/%s/issuecredential%s" % (name, V), verb="POST", body=b'{"attestation_token":"hush"}', of=of)
        self.assertEqual(len(of.requests("identity/issuecredential")), 2)
        for target in ("/metadata/Identity/x", "/metadata/identi%74y/x%ff", TARGET + "&client_secret=hush&x=1",
                       TARGET + "&access_token=hush", TARGET + "&sig=hush", TARGET + "&next=https://x/?Sig=hush&x=2",
                       *(TARGET + "&%s=hush" % name for name in (
                           "TOKEN", "accessTOKEN", "%74oken", "to%6ben", "pwd", "api_key", "jwt", "Credential", "%ff%74oken")),
                       "http://bob:hush@127.0.0.1" + TARGET):
            ask(target, verb="POST", body=b"" if "?" in target else b"hush", of=of)
        for name in ("x-auth", "x-jwt", "x-session-id", "password", "x-identity-header"):
            ask(TARGET, dict(OK, **{name: "hush"}), of=of)
        for target in ("/oauth2/token", TARGET):
            ask(target, verb="POST", body=b"client_secret=hush", of=of)
        for line in ('{"client_secret":"hush"}', "Authorization: Bearer hush", "GET %s&token=hush HTTP/1.1" % TARGET):
            of.refuse("malformed", line)
        of.fail("redirect")
        ask(TARGET + "&client_secret=hush", of=of)
        self.assertIn("Location", dict(of.requests()[-1].response.headers))
        self.assertEqual(of.requests()[-2].request.target, "GET %s&token=(masked)" % TARGET)
        of.refuse("malformed", "\x16\x03\x01")
        self.assertEqual(of.requests()[-1].request.target, "\x16\x03\x01")
        ask(TARGET + "&authority=https://login.example&resource=a&nonce=b", of=of)
        self.assertIn("&authority=https://login.example&resource=a&nonce=b", of.requests()[-1].request.target)
        self.assertNotIn("hush", repr(of.requests()))
        self.assertEqual(len(of.requests(query={"x": "1"})), 1)
        self.assertNotIn("hush", json.dumps([each.as_dict() for each in of.requests()]))

    def test_masked_over_http_too(self):
        with imds.Emulator(control=True) as vm:
            for _ in range(3):  # the later ones are answered as the first was
                send(vm, TOKEN + VAULT, dict(OK, Authorization="Bearer hush"))
            request = urllib.request.Request(vm.url + "/imds/requests", headers={"Metadata": "true"})
            with urllib.request.urlopen(request, timeout=5) as reply:
                text = reply.read().decode()
            self.assertEqual(len(json.loads(text)["result"]), 3)
            for kept in (text, repr(vm.requests)):
                self.assertNotIn("eyJ", kept)
                self.assertNotIn("hush", kept)

    def test_it_is_bounded(self):
        of = bench()
        self.assertEqual(imds.JOURNAL_SIZE, 10000)
        for _ in range(10050):
            of.refuse("malformed", "x")
        self.assertEqual([len(of.requests()), of.requests()[0].number, of.requests()[-1].number], [10000, 51, 10050])

    def test_no_exchange_is_large(self):
        of = bench({"compute": {"userData": "x" * 60000}})
        ask("/metadata/instance" + V, of=of)
        ask(TARGET, dict(OK, **{"x-%d" % number: "y" * 3000 for number in range(20)}), verb="POST", body=b"z" * 60000, of=of)
        ask(TARGET, dict(OK, **{"n" * 60000: "1"}), of=of)
        for each in of.requests():
            sizes = len(each.response.body), len(each.request.body) + len(str(each.request.headers))
            self.assertLessEqual(max(sizes), 16384)

    def test_what_could_not_be_read(self):
        of = bench()
        imds.Conversation(of).receive(b"\x16\x03\x01\x02\x00")
        imds.Conversation(of).receive(b"nonsense \x1b[31m\r\n\r\n")
        self.assertEqual([(each.rule, each.request.verb) for each in of.requests()], [("malformed", "")] * 2)
        for each in of.requests():
            self.assertTrue(str(each).isprintable(), str(each))
        of.lint()
        of.requests("/metadata/instance")


class Assertions(unittest.TestCase):
    def setUp(self):
        self.bench = bench()
        ask("/metadata/instance" + V, {"user-agent": "me/1"}, of=self.bench)
        ask(TARGET, of=self.bench)
        ask(TARGET, of=self.bench)

    def test_what_holds(self):
        of = self.bench
        for path, settings in (
            ("/metadata/instance", {}), ("/metadata/instance", {"times": 1}), (NAME, {"times": 2}),
            (NAME, {"headers": {"Metadata": "true"}, "query": {"format": "text"}, "verb": "GET"}),
            ("/metadata/versions", {"times": 0}), (TARGET, {"times": 2}),
        ):
            with self.subTest(path=path, settings=settings):
                self.assertIsNone(of.assert_requested(path, **settings))
        for path, settings in (("/metadata/versions", {}), (NAME, {"verb": "POST"}), (NAME, {"query": {"format": "json"}}),
                               ("/metadata/instance", {"headers": {"Metadata": "true"}})):
            with self.subTest(path=path, settings=settings):
                self.assertIsNone(of.assert_not_requested(path, **settings))

    def test_what_they_say(self):
        for path, settings, lines in (
            ("/metadata/instance", {"times": 2}, ["1 request like /metadata/instance, expected 2\n  ",
                                                  "GET /metadata/instance?api-version=2021-02-01  400"]),
            (NAME, {"times": 0}, ["2 requests like %s, expected 0" % NAME]),
            ("/metadata/instance", {"headers": {"Metadata": "true"}, "query": {"format": "text"}, "verb": "POST"},
             ["no request like POST /metadata/instance (Metadata: true, format=text), expected 1 or more",
              "header Metadata is None, not 'true'", "format is None, not 'text'", "verb GET, not POST"]),
            ("/metadata/instance/compute", {},
             ["no request like /metadata/instance/compute, expected 1 or more",
              "path /metadata/instance, not /metadata/instance/compute",
              "path /metadata/instance/compute/name, not /metadata/instance/compute"]),
            (NAME + "?api-version=2099-01-01", {}, ["api-version is '2021-02-01', not '2099-01-01'"]),
            (NAME, {"headers": {"Metadata": "false"}}, ["header Metadata is 'true', not 'false'"]),
        ):
            with self.subTest(path=path, settings=settings):
                with self.assertRaises(AssertionError) as caught:
                    self.bench.assert_requested(path, **settings)
                for line in lines:
                    self.assertIn(line, str(caught.exception).replace("never, not never", "never"))

    def test_the_nearest_come_first(self):
        with self.assertRaises(AssertionError) as caught:
            self.bench.assert_requested(NAME, headers={"Metadata": "true"}, query={"format": "json"})
        lines = str(caught.exception).splitlines()
        self.assertEqual([line.split()[0] for line in lines[1::2]], ["3", "2", "1"])  # of those as near the newest
        self.assertEqual(lines[2].strip(), "format is 'text', not 'json'")
        self.assertEqual(lines[6].count(";"), 2)

    def test_a_path_is_near_that_begins_alike(self):
        of = bench()
        for target in (TARGET, "/metadata/versions", "/metadata/versions", "/metadata/versions"):
            ask(target, of=of)
        with self.assertRaises(AssertionError) as caught:
            of.assert_requested("/metadata/instanc")
        self.assertIn(TARGET, str(caught.exception).splitlines()[1])

    def test_three_at_most(self):
        for _ in range(20):
            ask("/metadata/versions", of=self.bench)
        with self.assertRaises(AssertionError) as caught:
            self.bench.assert_requested(NAME, verb="POST")
        self.assertEqual(len(str(caught.exception).splitlines()), 7)

    def test_nothing_came(self):
        with self.assertRaises(AssertionError) as caught:
            bench().assert_requested(NAME)
        self.assertEqual(str(caught.exception).splitlines()[1], "  there was no other request")

    def test_assert_not_requested(self):
        with self.assertRaises(AssertionError) as caught:
            self.bench.assert_not_requested(NAME, query={"format": "text"})
        lines = str(caught.exception).splitlines()
        self.assertEqual(lines[0], "2 requests like %s (format=text), expected none" % NAME)
        self.assertEqual([line.split()[0] for line in lines[1:]], ["2", "3"])

    def test_of_an_emulator(self):
        with imds.Emulator() as vm:
            send(vm, TARGET)
            vm.assert_requested("/metadata/instance/compute/name", times=1, headers={"Metadata": "true"})
            vm.assert_not_requested("/metadata/identity/oauth2/token")
            self.assertRaises(AssertionError, vm.assert_requested, "/metadata/versions")
            self.assertEqual(len(vm.requests), 1)
            self.assertTrue(vm.requests[0].request.headers["user-agent"])


class WaitFor(unittest.TestCase):
    def test_what_came_already(self):
        with imds.Emulator() as vm:
            send(vm, TARGET)
            send(vm, TARGET)
            self.assertEqual([each.number for each in vm.wait_for(NAME, timeout=0)], [1, 2])
            self.assertEqual(len(vm.wait_for(NAME, times=2, verb="GET", timeout=0)), 2)

    def test_what_comes_from_another_thread(self):
        with imds.Emulator() as vm:
            def ask_thrice():
                for path in ("compute/location", "compute/name", "compute/name"):
                    send(vm, "/metadata/instance/%s%s&format=text" % (path, V))

            thread = threading.Timer(0.1, ask_thrice)
            thread.start()
            began = time.monotonic()
            self.assertEqual([each.number for each in vm.wait_for(NAME, times=2, timeout=5)], [2, 3])
            self.assertLess(time.monotonic() - began, 3)
            thread.join()
            self.assertEqual(vm._bench.watchers, [])

    def test_several_wait(self):
        with imds.Emulator() as vm:
            found = []
            threads = [threading.Thread(target=lambda: found.extend(vm.wait_for(NAME, timeout=5))) for _ in range(8)]
            for thread in threads:
                thread.start()
            send(vm, TARGET)
            for thread in threads:
                thread.join()
            self.assertEqual([each.number for each in found], [1] * 8)

    def test_it_ends_after_its_time(self):
        with imds.Emulator() as vm:
            send(vm, TARGET)
            began = time.monotonic()
            with self.assertRaises(AssertionError) as caught:
                vm.wait_for(NAME, times=2, timeout=0.1, query={"format": "text"})
            self.assertTrue(0.1 <= time.monotonic() - began < 1)
            self.assertIn("1 request like ", str(caught.exception))
            self.assertEqual(vm._bench.watchers, [])

    def test_it_does_not_poll(self):
        with imds.Emulator() as vm:
            looks = []
            original = vm._bench.requests
            vm._bench.requests = lambda *args, **settings: looks.append(1) or original(*args, **settings)
            with self.assertRaises(AssertionError):
                vm.wait_for(NAME, timeout=0.2)
            self.assertLessEqual(len(looks), 4)

    def test_for_ever(self):
        with imds.Emulator() as vm:
            thread = threading.Timer(0.1, vm.get, ["compute/name"])
            thread.start()
            self.assertEqual(len(vm.wait_for("instance", timeout=float("inf"))), 1)
            thread.join()  # it has not read its answer yet
            self.assertRaises(ValueError, vm.wait_for, "instance", timeout=float("nan"))

    def test_a_reset_while_it_waits(self):
        with imds.Emulator() as vm:
            vm.get("compute/name")

            def reset():
                end = time.monotonic() + 5
                while not vm._bench.watchers and time.monotonic() < end:
                    time.sleep(0.005)
                vm.reset()
                vm.get("compute/name")

            thread = threading.Thread(target=reset)
            thread.start()
            self.assertRaises(AssertionError, vm.wait_for, "instance", times=2, timeout=0.3)
            thread.join()
            self.assertEqual(len(vm.wait_for("instance", timeout=0)), 1)


class Reset(unittest.TestCase):
    def test_everything_is_as_it_was(self):
        now = [1.7e9]
        with imds.Emulator(clock=lambda: now[0], identities=["user:web"], load_balancer=True, rate_limit=100) as vm:
            before = vm.instance, vm.identities, vm.load_balancer, vm.events(), vm.url
            vm.update({"compute": {"name": "other"}})
            vm.identities, vm.load_balancer = ["system", "user:two"], False
            vm.schedule("Reboot")
            vm.advance(9000)
            vm.freeze()
            vm.fail("500 every 9")
            vm.recover()
            vm.fail("dead")
            self.assertRaises(imds.Error, vm.get, "compute/name", deadline=0.2)
            now[0] += 5
            vm.reset()
            self.assertEqual((vm.instance, vm.identities, vm.load_balancer, vm.events(), vm.url), before)
            self.assertEqual((vm.clock(), vm.requests, vm.faults(), vm.lint(), vm.rate_limit), (1.7e9 + 5, [], [], [], 100))
            self.assertEqual(vm.get("compute/name"), before[0]["compute"]["name"])
            now[0] += 5
            self.assertEqual(vm.clock(), 1.7e9 + 10)  # it runs again
            self.assertEqual(len(vm.requests), 1)

    def test_what_it_began_with(self):
        event = {"kind": "Reboot", "after": 30}
        with imds.Emulator(faults=["404", {"playbook": "500 p 0.5", "seed": 7}], schedule=[event, "redeploy"]) as vm:
            before = vm.faults(), [each["EventType"] for each in vm.events()["Events"]], vm.instance["compute"]["name"]
            self.assertEqual(before[:2], (["404", "500 p 0.5"], ["Reboot", "Redeploy"]))
            vm.recover()
            vm.replace({"compute": {"name": "b"}})
            vm.advance(90)
            vm.reset()
            self.assertEqual((vm.faults(), [each["EventType"] for each in vm.events()["Events"]]), before[:2])
            self.assertEqual(vm.instance["compute"]["name"], before[2])
        with imds.ScaleSet(2, schedule=[event]) as vms:
            vms.reset()
            self.assertEqual([len(vm.events()["Events"]) for vm in vms], [1, 1])
        for settings in ({"faults": [500]}, {"faults": [None]}, {"schedule": [5]}):
            with self.subTest(settings=settings), self.assertRaises(ValueError):
                imds.Emulator(**settings)

    def test_what_was_changed_after_it_was_given(self):
        document, identity = imds.make_vm(), {"name": "web"}
        vm = imds.Emulator(document, identities=[identity])
        before = vm.instance, vm.identities
        document["network"], identity["name"] = 5, "other"
        vm.reset()
        self.assertEqual((vm.instance, vm.identities), before)

    def test_what_was_given_as_an_iterator(self):
        vm = imds.Emulator(identities=iter(["user:web"]), versions=iter(["2021-02-01"]))
        vm.reset()
        self.assertEqual((len(vm.identities), vm.versions), (1, ["2021-02-01"]))

    def test_tokens_and_documents_of_the_vm_as_it_was(self):
        with imds.Emulator(clock=imds.Clock(lambda: 1.7e9)) as vm:
            first = vm.attested("1")
            vm.update({"compute": {"vmId": "00000000-0000-4000-8000-000000000001"}})
            self.assertNotEqual(imds.attested_content(vm.attested("1")), imds.attested_content(first))
            vm.reset()
            self.assertEqual(imds.attested_content(vm.attested("1")), imds.attested_content(first))

    def test_events_of_the_file_come_back(self):
        event = {"EventId": "A" * 8, "EventType": "Reboot", "ResourceType": "VirtualMachine", "Resources": ["x"],
                 "EventStatus": "Scheduled", "NotBefore": "", "Description": "", "EventSource": "Platform",
                 "DurationInSeconds": -1}
        of = imds.Bench(imds.Clock(lambda: 1.7e9), {"instance": {}, "scheduledevents": {
            "DocumentIncarnation": 7, "Events": [event]}})
        before = of.events()
        of.cancel("A" * 8)
        self.assertEqual(of.events()["Events"], [])
        of.reset()
        self.assertEqual(of.events(), before)

    def test_faults_of_the_start_come_back(self):
        of = imds.Bench(imds.Clock(lambda: 1.7e9), faults=["identity: 500 x9"])
        of.fail("404 x9")
        of.recover()
        of.reset()
        self.assertEqual(of.faults(), ["identity: 500 x9"])

    def test_another_vm_keeps_the_list_of_events(self):
        of = imds.Bench(imds.Clock(lambda: 1.7e9))
        of.schedule("Reboot")
        before = of.events()
        of.replace({"compute": {"name": "other"}})
        self.assertEqual((of.instance()["compute"]["name"], of.events()), ("other", before))

    def test_numbers_go_on(self):  # no x-ms-request-id comes twice
        of = imds.Bench(imds.Clock(lambda: 1.7e9))
        ids = []
        for _ in range(3):
            ids += [dict(ask(TARGET, of=of).headers)["x-ms-request-id"] for _ in range(2)]
            of.reset()
        self.assertEqual(len(set(ids)), 6)


class Exec(unittest.TestCase):
    def test_requests(self):
        code, out, errors = run("exec", "--requests", "--", sys.executable, imds.__file__, "get", "compute/name",
                                "compute/location")
        self.assertEqual((code, out), (0, "avset2\nwestus\n"))
        self.assertRegex(errors, r"\A1  \d\d:\d\d:\d\d  GET /metadata/instance\?\S+  200  by \S+\n\Z")

    def test_none(self):
        self.assertEqual(run("exec", "--requests", "--", sys.executable, "-c", "pass"), (0, "", ""))
