"""Rooms 6, 8 and 10: /imds/, every operation by its name; ctl; serve --reload."""

import contextlib
import inspect
import json
import os
import re
import socket
import sys
import tempfile
import unittest
import urllib.error
import urllib.request
from unittest import mock

import imds
from tests.support import CLOSED, OK, TARGET, TOKEN, VAULT, Script, Steps, V, ask, bench, call, reply, run

HERE = dict(OK, host="localhost")


def control(of, name, arguments=None, headers=HERE, verb=None):
    """Status and parsed body of a request to /imds/ of a Bench: POST where there are arguments."""
    body = b"" if arguments is None else json.dumps(arguments).encode()
    response = ask("/imds/" + name, headers, verb or ("GET" if arguments is None else "POST"), body, of=of)
    return response.status, json.loads(response.body.decode())


def over_http(url, name, arguments=None, headers=None):
    data = None if arguments is None else json.dumps(arguments).encode()
    request = urllib.request.Request(url + "/imds/" + name, data=data, headers=headers or {"Metadata": "true"})
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:
            return reply.getcode(), json.loads(reply.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read().decode())


class Doors(unittest.TestCase):
    def test_off_unless_asked_for(self):
        for target in ("/imds/", "/imds", "/imds/reset", "/imds/instance"):
            for verb in ("GET", "POST"):
                with self.subTest(target=target, verb=verb):
                    response = ask(target, HERE, verb, b"{}", of=bench())
                    self.assertEqual(response.status, 404)
                    self.assertTrue(response.body.startswith(b"<"), response.body)
        with imds.Emulator() as vm:
            self.assertNotIn("AZURE_IMDS_CONTROL", vm.environ)
        with imds.Emulator(control=True) as vm:
            self.assertEqual(vm.environ["AZURE_IMDS_CONTROL"], vm.url + "/imds")

    def test_who_may_ask(self):
        for headers, hosts, status in (
            ({"metadata": "true", "host": "localhost"}, (), 200), ({"metadata": "TRUE", "host": "LOCALHOST:8169"}, (), 200),
            ({"metadata": "true", "host": "127.0.0.1:8169"}, (), 200), ({"metadata": "true", "host": "[::1]:80"}, (), 200),
            ({"metadata": "true", "host": "169.254.169.254"}, (), 200), ({"metadata": "true", "host": "10.0.0.4"}, (), 200),
            ({"metadata": "true", "host": "imds.test"}, ("imds.test",), 200),
            ({"metadata": "true", "host": "imds.test"}, (), 400), ({"metadata": "true", "host": "localhost.evil.test"}, (), 400),
            ({"metadata": "true", "host": "127.0.0.1.evil.test"}, (), 400), ({"metadata": "true", "host": "xlocalhost"}, (), 400),
            ({"metadata": "true", "host": ""}, (), 400), ({"metadata": "true"}, (), 400),
            ({"host": "localhost"}, (), 400), ({"metadata": "false", "host": "localhost"}, (), 400),
            ({"metadata": "", "host": "localhost"}, (), 400), ({"metadata": "true, true", "host": "localhost"}, (), 400),
        ):
            for name, arguments in (("instance", None), ("", None), ("freeze", {})):
                with self.subTest(headers=headers, hosts=hosts, name=name):
                    of = bench(control=True, hosts=hosts)
                    self.assertEqual(control(of, name, arguments, headers)[0], status)
                    self.assertEqual(control(of, "requests", None)[1]["result"], [])  # control is in no journal

    def test_wherever_it_is_bound(self):
        for host in ("127.0.0.1", "0.0.0.0"):
            with self.subTest(host=host), imds.Emulator(host=host, control=True, allow_hosts=iter(["ci.test"])) as vm:
                for name, status in (("evil.test", 400), ("ci.test", 200), ("CI.test", 200), ("localhost", 200), ("127.0.0.1", 200)):
                    self.assertEqual(over_http(vm.url, "instance", None, {"Metadata": "true", "Host": name})[0], status)
                self.assertEqual(over_http(vm.url, "freeze", {}, {"Host": "localhost"})[0], 400)
                said = over_http(vm.url, "freeze", {}, {"Metadata": "true", "Host": "vm.test"})[1]["error"]
                self.assertIn("allow_hosts", said)  # also where vm.test is what it is bound to

    def test_a_page_elsewhere_can_not_ask(self):  # what a browser sends without asking first
        of = bench(control=True)
        for headers in ({"host": "localhost", "origin": "http://evil.test", "content-type": "text/plain"},
                        {"host": "evil.test", "origin": "http://evil.test", "metadata": "true"}):
            self.assertEqual(control(of, "freeze", {}, headers)[0], 400)
        response = ask("/imds/instance", dict(HERE, origin="http://evil.test"), of=of)
        self.assertNotIn("access-control-allow-origin", {name.lower() for name, _ in response.headers})
        self.assertNotEqual(ask("/imds/freeze", dict(HERE, origin="http://evil.test"), "OPTIONS", of=of).status, 200)

    def test_verbs_and_names(self):
        of = bench(control=True)
        for verb, name, status, word in (
            ("GET", "schedule", 405, "POST it"), ("GET", "reset", 405, "POST it"), ("GET", "advance?seconds=5", 405, "POST it"),
            ("GET", "identities?identities=user:x", 400, "POST them"), ("GET", "load_balancer?load_balancer=true", 400, "POST them"),
            ("GET", "instance?vm=0", 200, None), ("POST", "reset?vm=0", 400, "in its body"), ("GET", "requests?since=" + "[" * 7000, 400, "since"),
            ("PUT", "reset", 405, "POST it"), ("DELETE", "instance", 405, "POST it"), ("POST", "instance", 200, None),
            ("GET", "nonsense", 400, "operation"), ("POST", "respond", 400, "operation"), ("POST", "_restart", 400, "operation"),
            ("POST", "", 400, "operation"), ("POST", "operate", 400, "operation"), ("POST", "__class__", 400, "operation"),
            ("GET", "instance/", 200, None), ("GET", "instance/compute", 400, "operation"), ("POST", "replace", 400, "operation"),
        ):
            with self.subTest(verb=verb, name=name):
                code, answer = control(of, name, None, HERE, verb)
                self.assertEqual(code, status)
                self.assertIn(word or "result", answer["error"] if word else answer)
        for name in ("/imdsx", "/imds.txt", "/IMDS/", "/metadata/imds/"):
            self.assertNotEqual(ask(name, HERE, of=of).status, 200)


class Operations(unittest.TestCase):
    def setUp(self):
        self.clock = imds.Clock(lambda: 1.7e9)
        self.bench = bench(clock=self.clock, control=True)

    def state(self):
        of = self.bench
        return (of.instance(), of.identities(), of.load_balancer(), of.events(), of.faults(), self.clock(),
                len(of.requests()), self.clock._run)

    def test_each_by_its_name(self):
        of = self.bench
        ask(TARGET, of=of)
        event = of.schedule("Freeze")
        for name, arguments, check in (
            ("instance", None, lambda result: result["compute"]["name"] == "avset2"),
            ("requests", None, lambda result: [each["target"] for each in result] == [TARGET]),
            ("requests?path=/metadata/versions", None, lambda result: result == []),
            ("requests?since=1", None, lambda result: result == []),
            ("requests", {"path": "/metadata/instance/compute/name", "headers": {"Metadata": "true"}},
             lambda result: len(result) == 1),
            ("events", None, lambda result: [each["EventId"] for each in result["Events"]] == [event]),
            ("approve", {"event_id": event}, lambda result: of.events()["Events"][0]["EventStatus"] == "Started"),
            ("cancel", {"event_id": event}, lambda result: of.events()["Events"] == []),
            ("schedule", {"kind": "Reboot", "after": 30}, lambda result: of.events()["Events"][0]["EventId"] == result),
            ("schedule", {"kind": "Preempt", "resources": ["a", "b"], "source": "User", "description": "d", "duration": 5,
                          "lasts": 1.5, "cancelled_after": 9},
             lambda result: of.events()["Events"][1]["Resources"] == ["a", "b"]),
            ("play", {"scenario": "redeploy"}, lambda result: of.events()["Events"][-1]["EventType"] == "Redeploy"),
            ("advance", {"seconds": 900}, lambda result: self.clock() == 1.7e9 + 900),
            ("freeze", {}, lambda result: self.clock._run[2] == 0),
            ("resume", {"scale": 60}, lambda result: self.clock._run[2] == 60),
            ("resume", {}, lambda result: self.clock._run[2] == 1),
            ("update", {"patch": {"compute": {"tags": "a:b"}}},
             lambda result: of.instance()["compute"]["tagsList"] == [{"name": "a", "value": "b"}]),
            ("identities", None, lambda result: [each["type"] for each in result] == ["system"]),
            ("identities", {"identities": ["system", "user:web"]}, lambda result: len(result) == 2),
            ("load_balancer", None, lambda result: result is None),
            ("load_balancer", {"load_balancer": True}, lambda result: list(result) == ["loadbalancer"]),
            ("attested", {"nonce": "12345"}, lambda result: imds.attested_content(result)["nonce"] == "12345"),
            ("fail", {"playbook": "instance: 500 x2", "seed": 5},
             lambda result: result == {"playbook": "instance: 500 x2", "seed": 5}),
            ("faults", None, lambda result: result == ["instance: 500 x2"]),
            ("recover", {}, lambda result: of.faults() == []),
            ("lint", None, lambda result: [each["rule"] for each in result] == ["no-user-agent"]),
            ("assert_requested", {"path": "/metadata/instance/compute/name", "times": 1}, lambda result: result is None),
            ("assert_not_requested", {"path": "/metadata/versions"}, lambda result: result is None),
            ("reset", {}, lambda result: of.instance()["compute"]["tags"] != "a:b" and of.requests() == []),
        ):
            with self.subTest(name=name, arguments=arguments):
                status, answer = control(of, name, arguments)
                self.assertEqual((status, list(answer)), (200, ["result"]), answer)
                self.assertTrue(check(answer["result"]), answer)

    def test_wrong_input_changes_nothing(self):
        ask(TARGET, of=self.bench)
        self.bench.schedule("Freeze")
        for name, arguments, words in (
            ("schedule", {}, "kind"), ("schedule", {"kind": "Nap"}, "Nap"), ("schedule", {"kind": ["Reboot"]}, ""),
            ("schedule", {"kind": "Reboot", "when": 5}, "when"), ("schedule", {"kind": "Reboot", "after": "30"}, "after"),
            ("schedule", {"kind": "Reboot", "after": 1, "at": 2}, "not both"), ("schedule", {"kind": "Reboot", "after": True}, "after"),
            ("schedule", {"kind": "Reboot", "resources": "avset2"}, "resources"),
            ("schedule", {"kind": "Reboot", "resources": 5}, ""), ("schedule", {"kind": "Reboot", "resources": [5]}, ""),
            ("schedule", {"kind": "Reboot", "duration": "x"}, "duration"), ("schedule", {"kind": "Reboot", "source": "Me"}, "Me"),
            ("schedule", {"kind": "Reboot", "description": 5}, ""), ("schedule", {"kind": "Reboot", "lasts": -1}, "lasts"),
            ("schedule", {"kind": "Reboot", "at": 1e12}, "at"),
            ("approve", {"event_id": "nope"}, "nope"), ("approve", {"event_id": 5}, ""), ("approve", {}, "event_id"),
            ("cancel", {"event_id": "nope"}, "nope"), ("cancel", {"event_id": None}, ""), ("play", {"scenario": "x"}, "x"),
            ("play", {"scenario": ["redeploy"]}, ""),
            ("advance", {"seconds": -1}, "seconds"), ("advance", {"seconds": "9"}, "seconds"), ("advance", {}, "seconds"),
            ("advance", {"seconds": 1e11}, "seconds"), ("advance", {"seconds": 32503679999}, "clock"),
            ("resume", {"scale": -1}, "scale"), ("resume", {"scale": "fast"}, "scale"), ("freeze", {"seconds": 5}, "seconds"),
            ("update", {"patch": {"compute": "x"}}, "compute"), ("update", {"patch": 5}, ""), ("update", {"patch": None}, ""), ("update", {"patch": []}, ""),
            ("update", {"patch": {"compute": {"name": [5]}}}, "name"), ("update", {"compute": {}}, "patch"), ("update", {}, "patch"),
            ("identities", {"identities": ["nobody"]}, ""), ("identities", {"identities": [5]}, ""),
            ("identities", {"identities": 5}, ""), ("identities", {"identities": ["user:a", "user:a"]}, ""),
            ("load_balancer", {"load_balancer": "yes"}, ""), ("load_balancer", {"load_balancer": [1]}, ""),
            ("attested", {"nonce": 5}, "nonce"), ("attested", {"nonce": "x" * 99}, "nonce"), ("attested", {"flaw": "x"}, "x"),
            ("attested", {"flaw": False}, "flaw"), ("attested", {"flaw": {}}, "flaw"), ("identities", {"identities": {}}, "user:NAME"),
            ("assert_requested", {"path": TARGET, "times": False}, "times"),
            ("attested", {"api_version": "2016"}, "2016"), ("attested", {"api_version": "2018-04-02"}, "2018-04-02"),
            ("fail", {"playbook": "instance: 5oo"}, "is wrong at 11"), ("fail", {"playbook": 500}, ""), ("fail", {}, "playbook"),
            ("fail", {"playbook": "500", "seed": "x"}, "seed"), ("fail", {"playbook": {"a": 1}}, ""),
            ("requests", {"since": "x"}, ""), ("requests", {"nonsense": 1}, "nonsense"), ("requests", {"headers": "x"}, ""),
            ("requests", {"query": [1]}, ""), ("requests", {"path": 5}, ""), ("requests", {"headers": {"a": 5, "b": {}}}, None),
            ("assert_requested", {"path": "/metadata/versions"}, "no request like /metadata/versions"),
            ("assert_requested", {"path": 5}, ""), ("assert_not_requested", {"path": TARGET}, "1 request like "),
            ("instance", {"vm": 1}, "vm"), ("instance", {"vm": "0"}, "vm"), ("instance", {"vm": -1}, "vm"),
            ("instance", {"x": 1}, "x"), ("reset", {"hard": True}, "hard"), ("lint", {"x": 1}, "x"),
        ):
            with self.subTest(name=name, arguments=arguments):
                before = self.state()
                status, answer = control(self.bench, name, arguments)
                if words is not None:
                    self.assertEqual((status, list(answer)), (400, ["error"]), answer)
                    self.assertIn(words, answer["error"])
                self.assertEqual(self.state(), before)

    def test_bodies_that_are_none(self):
        for body in (b"nonsense", b"[]", b"5", b'"x"', b"\xff", b"[" * 60000, b'{"seconds": NaN}', b'{"seconds": 1e999}',
                     b'{"seconds": Infinity}', b"null"):
            with self.subTest(body=body[:20]):
                before = self.state()
                response = ask("/imds/advance", HERE, "POST", body, of=self.bench)
                self.assertEqual(response.status, 400)
                self.assertEqual(list(json.loads(response.body.decode())), ["error"])
                self.assertEqual(self.state(), before)

    def test_an_empty_body_is_no_argument(self):
        for name in ("freeze", "resume", "recover", "reset", "instance"):
            self.assertEqual(control(self.bench, name, None, HERE, "POST")[0], 200)

    def test_the_headers_of_answers(self):
        for name, arguments, status in (("instance", None, 200), ("", None, 200), ("advance", {}, 400), ("reset", None, 405)):
            body = b"" if arguments is None else json.dumps(arguments).encode()
            response = ask("/imds/" + name, HERE, "GET" if arguments is None else "POST", body, of=self.bench)
            headers = dict(response.headers)
            self.assertEqual(response.status, status)
            self.assertEqual((headers["Content-Type"], headers["Cache-Control"], headers["Content-Length"]),
                             ("application/json; charset=utf-8", "no-store", str(len(response.body))))
            self.assertTrue(response.body.endswith(b"}\n"))

    def test_they_take_effect_at_once(self):
        talk = imds.Conversation(self.bench)
        request = ("GET %s HTTP/1.1\r\nHost: localhost\r\nMetadata: true\r\n\r\n" % TARGET).encode()
        self.assertTrue(talk.receive(request)[0][1].endswith(b"avset2"))
        control(self.bench, "update", {"patch": {"compute": {"name": "other"}}})
        self.assertTrue(talk.receive(request)[0][1].endswith(b"other"))
        control(self.bench, "fail", {"playbook": "404"})
        self.assertTrue(talk.receive(request)[0][1].startswith(b"HTTP/1.1 404"))
        control(self.bench, "reset", {})
        self.assertTrue(talk.receive(request)[0][1].endswith(b"avset2"))

    def test_the_list_is_made_of_the_methods(self):
        status, listed = control(self.bench, "")
        self.assertEqual(status, 200)
        self.assertEqual(sorted(listed), """advance approve assert_not_requested assert_requested attested cancel events fail
            faults freeze identities instance lint load_balancer now play recover requests reset resume schedule update""".split())
        for name, row in listed.items():
            with self.subTest(name=name):
                method = getattr(imds.Bench, name)
                self.assertEqual(sorted(row), ["documentation", "signature"])
                self.assertEqual(row["documentation"], inspect.getdoc(method) or "")
                self.assertRegex(row["signature"], r"\A%s\(.*\)( -> .+)?\Z" % name)
                self.assertNotIn("self", row["signature"])
                for parameter in list(inspect.signature(method).parameters)[1:]:
                    self.assertIn(parameter, row["signature"])
        self.assertEqual(listed["advance"]["signature"].replace(":", ": ").replace("  ", " "), "advance(seconds: float) -> None")

    def test_the_shape_of_a_request(self):
        ask(TARGET, of=self.bench)
        result = control(self.bench, "requests")[1]["result"][0]
        kinds = {name: type(value).__name__ for name, value in result.items()}
        self.assertEqual(kinds, {
            "number": "int", "time": "float", "peer": "str", "vm": "int", "verb": "str", "target": "str", "headers": "dict",
            "body": "str", "status": "int", "rule": "NoneType", "fault": "NoneType", "seconds": "float"})

    def test_a_fault_does_not_touch_control(self):
        self.bench.fail("500 always")
        self.assertEqual(control(self.bench, "faults")[1]["result"], ["500 always"])

    def test_a_scale_set_by_number(self):
        with imds.ScaleSet(3, control=True) as vms:
            url = vms[0].url
            self.assertEqual([over_http(url, "instance?vm=%d" % number)[1]["result"]["compute"]["name"] for number in range(3)],
                             [vm.name for vm in vms])
            self.assertEqual(over_http(url, "update", {"vm": 2, "patch": {"compute": {"tags": "a:b"}}})[0], 200)
            self.assertEqual([vm.instance["compute"]["tags"] for vm in vms].count("a:b"), 1)
            self.assertEqual(vms[2].instance["compute"]["tags"], "a:b")
            self.assertEqual(over_http(url, "fail", {"vm": 1, "playbook": "500 always"})[0], 200)
            self.assertEqual([vm.faults() for vm in vms], [[], ["500 always"], []])
            for wrong in (3, -1, "1", 1.0, True):
                self.assertEqual(over_http(url, "reset", {"vm": wrong})[0], 400, wrong)
            self.assertNotIn("result", str(over_http(vms[1].url, "instance")))


class Page(unittest.TestCase):
    def test_for_a_browser(self):
        of = bench(control=True)
        for headers, kind in (
            ({"host": "localhost", "accept": "text/html,*/*"}, "text/html; charset=utf-8"),
            (dict(HERE, accept="*/*"), "application/json; charset=utf-8"), (HERE, "application/json; charset=utf-8"),
        ):
            response = ask("/imds/", headers, of=of)
            self.assertEqual((response.status, dict(response.headers)["Content-Type"]), (200, kind))
        self.assertEqual(ask("/imds/", {"host": "evil.test", "accept": "text/html"}, of=of).status, 400)
        self.assertEqual(ask("/imds/instance", {"host": "localhost", "accept": "text/html"}, of=of).status, 400)

    def test_nothing_external_and_no_markup(self):
        response = ask("/imds/", {"host": "localhost", "accept": "text/html"}, of=bench(control=True))
        page, policy = response.body.decode(), dict(response.headers)["Content-Security-Policy"]
        for word in ("http:", "https:", "//cdn", "src=", "href=", "@import", "url(", "innerHTML", "outerHTML", "insertAdjacent",
                     "document.write", "eval(", "$kinds", "$situations"):
            self.assertNotIn(word, page)
        self.assertIn("default-src 'none'", policy)
        self.assertIn("frame-ancestors 'none'", policy)
        for name in list(imds.SITUATIONS) + list(imds.EVENT_TYPES):
            self.assertIn(name, page)
        self.assertIn('name="viewport"', page)
        self.assertIn("color-scheme: light dark", page)
        for name in re.findall(r'data-do="(\w+)"', page) + re.findall(r'ask\("(\w+)"', page):
            self.assertIn(name, imds.OPERATIONS)
        for opened in ("script", "style", "table", "select", "datalist"):
            self.assertEqual(len(re.findall("<%s[ >]" % opened, page)), page.count("</%s>" % opened))


class Ctl(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.vm = imds.Emulator(control=True).start()

    @classmethod
    def tearDownClass(cls):
        cls.vm.stop()

    def setUp(self):
        self.vm.reset()

    def ctl(self, *arguments):
        with mock.patch.dict(os.environ, {"AZURE_IMDS_CONTROL": self.vm.url + "/imds"}):
            return call("ctl", *arguments)

    def test_operations(self):
        for arguments, code, out, errors in (
            (["schedule", "kind=Reboot", "after=30", "resources=a,b"], 0, r"[0-9A-F-]{36}\n", ""),
            (["advance", "seconds=1", "seconds=2"], 2, "", "each once"),
            (["schedule", "kind=Nap"], 1, "", "Nap"), (["nonsense"], 2, "", "operation"), (["advance", "900"], 2, "", "NAME=VALUE"),
            (["fail", "playbook=instance: 500 x2", "seed=3"], 0, r'\{[\s\S]*"seed": ?3\s*\}\n', ""),
            (["update", 'patch={"compute":{"name":"5"}}'], 0, "", ""), (["instance"], 0, r'[\s\S]*"name": ?"5"[\s\S]*', ""),
            (["requests", "path=/metadata/versions"], 0, r"\[\]\n", ""),
        ):
            with self.subTest(arguments=arguments):
                done = self.ctl(*arguments)
                self.assertEqual(done[0], code, done)
                self.assertRegex(done[1], r"\A%s\Z" % out)
                self.assertEqual(len(done[2].splitlines()), 1 if errors else 0)
                self.assertIn(errors, done[2])

    def test_an_assertion_of_several_lines(self):
        self.vm.get("compute/name")
        code, out, errors = self.ctl("assert_requested", "path=/metadata/versions")
        self.assertEqual((code, out), (1, ""))
        self.assertRegex(errors, r"\Aimds: no requests? like /metadata/versions, expected 1 or more\n"
                                 r"imds:   1  .*  GET /metadata/instance.*\nimds:     path /metadata/instance, not .*\n\Z")

    def test_names_in_a_list(self):
        for text in ("a,b", "a+b", '["a","b"]'):
            self.assertEqual(self.ctl("schedule", "kind=Reboot", "resources=" + text)[0], 0)
            self.assertEqual(self.vm.events()["Events"][-1]["Resources"], ["a", "b"])

    def test_alone_it_lists(self):
        code, out, _ = self.ctl()
        self.assertEqual(code, 0)
        for name in imds.OPERATIONS:
            self.assertRegex(out, r"(?m)^%s\(" % name)

    def test_where_it_goes(self):
        self.assertEqual(call("ctl", "--url", self.vm.url + "/imds/", "faults")[:2], (0, "[]\n"))
        self.assertEqual(call("ctl", "--url", CLOSED + "/imds", "--timeout", "0.3", "faults")[0], 3)
        with imds.Emulator() as vm:
            self.assertEqual(call("ctl", "--url", vm.url + "/imds", "--timeout", "0.3", "faults")[0], 1)
        for environ in ({"AZURE_IMDS_ENDPOINT": self.vm.url}, {"AZURE_IMDS_CONTROL": "", "AZURE_IMDS_ENDPOINT": self.vm.url + "/"},
                        {"AZURE_IMDS_CONTROL": self.vm.url, "AZURE_IMDS_ENDPOINT": CLOSED}):
            with self.subTest(environ=environ), mock.patch.dict(os.environ, environ):
                self.assertEqual(call("ctl", "faults")[:2], (0, "[]\n"))

    def test_text_stays_text(self):
        self.assertEqual(call("ctl", "--url", self.vm.url, "fail", "playbook=404")[0], 0)
        self.assertEqual(self.vm.faults(), ["404"])
        self.assertEqual(call("ctl", "--url", self.vm.url, "attested", "nonce=12345")[0], 0)
        listed = call("ctl", "--url", self.vm.url)[1]
        self.assertRegex(listed, r"attested\(nonce: ?str ?= ?'', \*, ")
        self.assertNotIn("'Optional", listed)
        self.assertIn("no emulator answers at %s; start one" % CLOSED, call("ctl", "--url", CLOSED, "--timeout", "0.3", "now")[2])

    def test_what_is_no_emulator(self):
        for body in (b"[]", b'"x"', b'{"a":5}', b"{}", b"5", b'{"schedule":1}'):
            for operation in ([], ["faults"]):
                with self.subTest(body=body, operation=operation), Script(reply(200, body)) as server:
                    code, out, errors = call("ctl", "--url", server.url, *operation)
                    self.assertEqual((code, out, errors.count("\n")), (5, "", 1), errors)

    def test_refusals_in_other_words(self):
        for body in (b'{"error":{}}', b'{"error":5}', b'{"error":null}', b"[]"):
            with self.subTest(body=body), Script(reply(400, body)) as server:
                code, out, errors = call("ctl", "--url", server.url, "faults")
                self.assertEqual((code, out, "answered 400" in errors), (1, "", True))

    def test_exec_control(self):
        script = "import os, subprocess, sys; raise SystemExit(subprocess.call([sys.executable, %r, 'ctl', 'faults']))"
        self.assertEqual(run("exec", "--control", "--fault", "500 x9", "--", sys.executable, "-c", script % imds.__file__)[:2],
                         (0, '["500 x9"]\n'))
        silent = "import os; raise SystemExit('AZURE_IMDS_CONTROL' in os.environ)"
        self.assertEqual(run("exec", "--", sys.executable, "-c", silent)[0], 0)
        with mock.patch.dict(os.environ, {"AZURE_IMDS_CONTROL": self.vm.url + "/imds"}):  # that of another emulator
            code, _, errors = run("exec", "--", sys.executable, "-c", script % imds.__file__)
        self.assertEqual((code, "start the emulator with --control" in errors), (1, True), errors)


class Reload(unittest.TestCase):
    def test_what_is_read_again(self):
        again, kept = "vm.json was read again", "; the VM stays as it was"
        rows = (  # what the file becomes, the name that is served then, and what is said
            ('{"compute": {"name": "second"}}', "second", again), (None, "second", ""),
            ('{"compute": {"name": "thi', "second", "vm.json is not JSON: "), ('{"compute": {"name": "third and longer"}}', "third and longer", again),
            ('{"compute": "nonsense"}', "third and longer", kept), ("", "third and longer", kept),
            ('{"compute": {"name": "again, and longer"}}', "again, and longer", again),
        )
        names, places, said = [], set(), []
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "vm.json")

            def write(text):
                if text is None:
                    os.remove(path)
                else:
                    with open(path, "w") as file:
                        file.write(text)

            def wait(vm, seconds):  # which lets no time pass: the file may change however soon
                names.append(imds.get("compute/name", endpoint=vm.url))
                places.add(imds.get("compute/location", endpoint=vm.url))
                said.append(len(sys.stderr.getvalue()))
                if len(names) <= len(rows):
                    write(rows[len(names) - 1][0])
                return len(names) <= len(rows)

            write('{"compute": {"name": "first"}}')
            with mock.patch.object(imds.Emulator, "wait", wait):
                code, _, errors = call("serve", "--port", "0", path, "--reload", "--quiet", "--set", "compute.location=moon")
        self.assertEqual((code, names, places), (0, ["first"] + [name for _, name, _ in rows], {"moon"}))
        for (text, _, words), start, end in zip(rows, said, said[1:]):
            self.assertIn(words, errors[start:end], text)
            self.assertEqual(errors.count("\n", start, end), 1 if words else 0, text)

    def test_it_goes_with_a_file(self):
        for arguments in (["--reload"], ["--reload", "-"], ["--reload", "--scale-set", "2"]):
            code, out, errors = call("serve", "--port", "0", *arguments)
            self.assertEqual((code, out), (2, ""))
            self.assertIn("--reload", errors)


class Clients(unittest.TestCase):
    def test_a_token_of_our_own_is_not_shown(self):
        with imds.Emulator(control=True) as vm:
            imds.token("https://vault.azure.net", endpoint=vm.url)
            self.assertNotIn("eyJ", json.dumps(over_http(vm.url, "requests")[1]))

    def test_pipelined_with_the_service(self):
        with imds.Emulator(control=True) as vm:
            with contextlib.closing(socket.create_connection(("127.0.0.1", vm.port), timeout=5)) as client:
                heads = "".join("GET %s HTTP/1.1\r\nHost: localhost\r\nMetadata: true\r\n%s\r\n" % (target, more) for target, more in (
                    (TARGET, ""), ("/imds/requests", ""), (TOKEN + VAULT, ""), ("/imds/events", "Connection: close\r\n")))
                client.sendall(heads.encode())
                data = b""
                while True:
                    chunk = client.recv(65536)
                    if not chunk:
                        break
                    data += chunk
            self.assertEqual(data.count(b"HTTP/1.1 200 OK\r\n"), 4)
            self.assertEqual(len(vm.requests), 2)

    def test_steps_of_a_bench_with_a_plain_clock(self):
        clock = Steps()
        of = bench(clock=clock, control=True)
        now = clock()
        self.assertEqual(control(of, "advance", {"seconds": 5}), (200, {"result": None}))
        self.assertEqual(clock(), now + 5)
        self.assertEqual(ask("/metadata/instance" + V, of=of).status, 200)
