"""Room 6: the operations, the moment in which an answer is given again, exchanges, the access log and the journal."""

import base64
import json
import locale
import os
import re
import time
import unittest
from unittest import mock

import imds
from tests.support import EVENTS, NOW, TOKEN, VAULT, Steps, V, ask, bench, claims, document

INSTANCE = "/metadata/instance" + V


def request(target=INSTANCE, verb="GET", headers=(), body=b"", version="HTTP/1.1"):
    """A request as it is sent."""
    lines = ["%s %s %s" % (verb, target, version), "Host: 127.0.0.1:8169", "Metadata: true"] + list(headers)
    lines += ["Content-Length: %d" % len(body)] * bool(body)
    return "\r\n".join(lines + ["", ""]).encode() + body


def whole(of, data, talk=None):
    """What goes back for bytes that come at once."""
    return b"".join(part for _, part in (talk or imds.Conversation(of, "10.9.8.7")).receive(data))


def in_pieces(of, data):
    """What goes back for the same bytes in two pieces, for which no answer is given again."""
    talk = imds.Conversation(of, "10.9.8.7")
    return b"".join(part for piece in (data[:7], data[7:]) for _, part in talk.receive(piece))


def same(answer):
    """An answer without what is different each time."""
    return re.sub(b"x-ms-request-id: [^\r]*\r\n", b"", answer)


def request_id(answer):
    return re.search(b"x-ms-request-id: ([^\r]*)", answer).group(1)


class Moment(unittest.TestCase):
    """An answer is given again only while it can't have changed."""

    def setUp(self):
        self.clock, self.lines = Steps(NOW + 0.25), []
        self.bench = bench(clock=self.clock, log=self.lines.append, load_balancer=True)

    def worked(self, data, of=None):
        """Whether the service itself was asked for an answer; and the answer."""
        of = of or self.bench
        with mock.patch.object(of.service, "respond", wraps=of.service.respond) as respond:
            answer = whole(of, data)
        return respond.call_count, answer

    def test_the_same_bytes_are_answered_the_same_without_work(self):
        for data in (request(), request(EVENTS), request("/metadata/attested/document" + V), request(TOKEN + VAULT),
                     request("/metadata/loadbalancer" + V), request("/metadata/nonsense" + V), request("/x"),
                     request("/x", "PUT"),
                     request("/", "HEAD"), request("/metadata/versions"), b"\r\n" + request(), request().replace(b"\r\n", b"\n"),
                     request(INSTANCE, headers=["Connection: keep-alive"], version="HTTP/1.0")):
            with self.subTest(data=data[:60]):
                first, again = self.worked(data), self.worked(data)
                self.assertEqual((first[0], again[0]), (1, 0))
                self.assertEqual(same(first[1]), same(again[1]))
                self.assertEqual(same(again[1]), same(in_pieces(self.bench, data)))
        first, again = self.worked(request()), self.worked(request())
        self.assertNotEqual(request_id(first[1]), request_id(again[1]))
        self.assertEqual(len(request_id(first[1])), 36)

    def test_the_connection_ends_as_it_did(self):
        for headers, ending in ((["Connection: close"], "close"), ([], "")):
            for _ in range(2):
                talk = imds.Conversation(self.bench, "x")
                answer = whole(self.bench, request(headers=headers), talk)
                self.assertEqual((talk.ending, talk.in_request, talk.pending), (ending, False, False))
                self.assertEqual(same(answer), same(in_pieces(self.bench, request(headers=headers))))

    def ends(self, data, change):
        """Check that after a change the answer is that of the service; return both answers."""
        self.worked(data)
        count, before = self.worked(data)
        self.assertEqual(count, 0)  # there was a moment to end
        change()
        count, after = self.worked(data)
        self.assertEqual(count, 1)
        self.assertEqual(same(after), same(in_pieces(self.bench, data)))
        return same(before), same(after)

    def test_the_second_of_the_clock(self):
        self.clock.now = NOW + 0.999
        before, after = self.ends(request(TOKEN + VAULT), lambda: self.clock.advance(0.001))
        self.assertIn(b"Date: Sat, 07 Feb 2026 11:04:46 GMT", before)
        self.assertIn(b"Date: Sat, 07 Feb 2026 11:04:47 GMT", after)
        self.assertIn(b'"expires_in":"86400"', before)
        self.assertIn(b'"expires_in":"86399"', after)
        before, after = self.ends(request(), lambda: self.clock.advance(-1))  # back again
        self.assertIn(b"11:04:46", after)
        self.ends(request(), lambda: self.clock.advance(86400))
        self.assertEqual(self.worked(request())[0], 0)
        self.clock.now += 0.5
        self.assertEqual(self.worked(request())[0], 0)  # the same second

    def test_an_event_that_is_due_within_the_second(self):
        self.bench.schedule("Freeze", after=0.5, lasts=0.1)
        seen = []
        for status in ("Started", None):
            before, after = self.ends(request(EVENTS), lambda: self.clock.advance(0.5 if not seen else 0.1))
            seen.append(status)
            self.assertNotEqual(before, after)
            self.assertEqual([event["EventStatus"] for event in json.loads(after.partition(b"\r\n\r\n")[2].decode())["Events"]],
                             [status] if status else [])

    def test_a_cancellation_that_is_due(self):
        self.bench.schedule("Freeze", cancelled_after=0.25)
        before, after = self.ends(request(EVENTS), lambda: self.clock.advance(0.25))
        self.assertIn(b'"Events":[]', after)

    def test_an_event_that_was_changed(self):
        def posted():
            body = json.dumps({"StartRequests": [{"EventId": other}]}).encode()
            self.assertIn(b" 200 OK", whole(self.bench, request(EVENTS, "POST", body=body)))

        other = self.bench.schedule("Reboot")
        for change in (lambda: self.bench.schedule("Freeze"), lambda: self.bench.play("redeploy"), posted,
                       lambda: self.bench.cancel(other)):
            before, after = self.ends(request(EVENTS), change)
            self.assertNotEqual(before, after)
        event_id = self.bench.schedule("Freeze")
        before, after = self.ends(request(EVENTS), lambda: self.bench.approve(event_id))
        self.assertIn(b"Started", after)

    def test_an_event_of_another_vm_of_the_scale_set(self):
        events = imds.Events(self.clock)
        self.bench, other = [bench(imds.make_vm("scaleset", number=number), clock=self.clock, events=events) for number in (1, 2)]
        before, after = self.ends(request(EVENTS), lambda: other.schedule("Freeze"))
        self.assertIn(b"web_2", after)
        self.clock.advance(901)  # the one has settled what the other must show
        document(EVENTS, other)
        self.assertIn(b"Started", whole(self.bench, request(EVENTS)))

    def test_an_approval_is_never_answered_for_another(self):
        one, two = self.bench.schedule("Reboot"), self.bench.schedule("Freeze")
        body = json.dumps({"StartRequests": [{"EventId": one}]}).encode()
        self.assertEqual([self.worked(request(EVENTS, "POST", body=body))[0] for _ in range(3)], [1, 1, 1])
        self.bench.cancel(one)
        self.assertIn(b" 400 Bad Request", whole(self.bench, request(EVENTS, "POST", body=body)))
        self.assertEqual(document(EVENTS, self.bench)["Events"][0]["EventId"], two)

    def test_an_update(self):
        for target, value in ((INSTANCE, b"another"), ("/metadata/instance/compute/name" + V + "&format=text", b"another"),
                              (TOKEN + VAULT, None), ("/metadata/attested/document" + V, None)):
            with self.subTest(target=target):
                self.bench.update({"compute": {"name": "one", "vmId": "one", "resourceId": "/one"}})
                before, after = self.ends(request(target), lambda: self.bench.update(
                    {"compute": {"name": "another", "vmId": "x", "resourceId": "/x"}}))
                self.assertNotEqual(before, after)
                self.assertIn(value or b"", after)

    def test_a_failed_update_changes_nothing(self):
        before = whole(self.bench, request())
        with self.assertRaises(ValueError):
            self.bench.update({"compute": {"name": []}})
        self.assertEqual(same(whole(self.bench, request())), same(before))

    def test_identities(self):
        before, after = self.ends(request(TOKEN + VAULT), lambda: self.bench.identities([]))
        self.assertIn(b"Identity not found", after)
        before, after = self.ends(request(TOKEN + VAULT), lambda: self.bench.identities(["user:app,client_id=c,object_id=o"]))
        self.assertIn(b'"client_id":"c"', after)
        before, after = self.ends(request(TOKEN + VAULT), lambda: self.bench.identities(["user:app,client_id=c,object_id=p"]))
        self.assertNotEqual(before, after)

    def test_a_load_balancer(self):
        data = request("/metadata/loadbalancer" + V)
        before, after = self.ends(data, lambda: self.bench.load_balancer(False))
        self.assertIn(b" 404 Not Found", after)
        before, after = self.ends(data, lambda: self.bench.load_balancer({"inboundRules": [{"frontendPort": 7}]}))
        self.assertIn(b'"frontendPort":7', after)

    def test_faults(self):
        def codes(count):
            return [int(whole(self.bench, request()).split(b" ")[1]) for _ in range(count)]

        self.assertEqual(codes(2), [200, 200])
        self.bench.fail("instance: 500 x3, 503")
        self.assertEqual(codes(6), [500, 500, 500, 503, 200, 200])
        self.bench.fail("instance: 500 always")
        self.assertEqual(codes(3), [500, 500, 500])
        self.bench.recover()
        self.assertEqual(codes(2), [200, 200])
        self.bench.fail("instance: 500 for 10s")
        self.assertEqual(codes(2), [500, 500])
        self.clock.now += 11
        self.assertEqual(codes(2), [200, 200])
        self.bench.fail("loadbalancer: 500 always")  # of another endpoint
        self.assertEqual(codes(2), [200, 200])

    def test_another_vm_in_its_place(self):
        self.bench.clock.reset = lambda: None
        self.bench.update({"compute": {"name": "another"}})
        before, after = self.ends(request(), self.bench.reset)
        self.assertIn(b"avset2", after)

    def test_throttling(self):
        self.bench = bench(clock=self.clock, rate_limit=2)
        answers = [self.worked(request()) for _ in range(4)]
        self.assertEqual([(count, answer.split(b" ")[1]) for count, answer in answers],
                         [(1, b"200"), (1, b"200"), (1, b"429"), (1, b"429")])
        self.bench = bench(clock=self.clock, rate_limit=1000)
        codes = [whole(self.bench, request(TOKEN + VAULT)).split(b" ")[1] for _ in range(7)]
        self.assertEqual(codes, [b"200"] * 5 + [b"429"] * 2)

    def test_bypass_cache(self):
        data, bypassing = request(TOKEN + VAULT), request(TOKEN + VAULT + "&bypass_cache=true")
        whole(self.bench, data)
        self.clock.now += 100
        old = self.token(whole(self.bench, data))
        self.assertEqual(self.token(whole(self.bench, data)), old)
        self.assertEqual(self.worked(bypassing)[0], 1)
        new = self.token(whole(self.bench, bypassing))
        self.assertNotEqual(new, old)
        self.assertEqual(self.token(whole(self.bench, data)), new)  # the service keeps the new one
        self.assertEqual(self.token(in_pieces(self.bench, data)), new)

    @staticmethod
    def token(answer):
        return json.loads(answer.partition(b"\r\n\r\n")[2].decode())["access_token"]

    def test_a_start_at_another_port(self):
        """Without a Host, an attested document leads to where the emulator is."""
        vm = imds.Emulator(clock=self.clock)
        data = (b"GET /metadata/attested/document?api-version=2021-02-01 HTTP/1.0\r\nConnection: keep-alive\r\n"
                b"Metadata: true\r\n\r\n")
        for _ in range(2):
            with vm:
                answer = json.loads(whole(vm._bench, data).partition(b"\r\n\r\n")[2].decode())
                self.assertIn(vm.url.encode() + b"/", base64.b64decode(answer["signature"]))

    def test_each_is_logged_and_kept_in_the_journal(self):
        for _ in range(3):
            whole(self.bench, request())
        in_pieces(self.bench, request())
        self.assertEqual(len(self.lines), 4)
        self.assertEqual(set(self.lines), {self.lines[0]})
        self.assertEqual([(each.number, each.peer, each.response.status) for each in self.bench.journal],
                         [(1, "10.9.8.7", 200), (2, "10.9.8.7", 200), (3, "10.9.8.7", 200), (4, "10.9.8.7", 200)])
        imds.Conversation(self.bench, "10.1.1.1").receive(request())
        self.assertEqual(self.bench.journal[-1].peer, "10.1.1.1")
        self.assertTrue(self.lines[-1].startswith("10.1.1.1 - - ["))
        self.clock.now += 0.5
        whole(self.bench, request())
        self.assertEqual(self.bench.journal[-1].time, NOW + 0.75)

    def test_a_log_that_fails(self):
        self.bench = bench(clock=self.clock, log=lambda line: 1 / 0)
        self.assertEqual(same(whole(self.bench, request())), same(whole(self.bench, request())))

    def test_a_request_that_differs_by_one_byte(self):
        first = request()
        whole(self.bench, first)
        for at in range(len(first)):
            for byte in (first[at] ^ 1, first[at] ^ 0x20):
                data = first[:at] + bytes([byte]) + first[at + 1:]
                self.assertEqual(same(whole(self.bench, data)), same(in_pieces(self.bench, data)), data)
        for data in (first + b"G", first[:-1], first + b"\r\n", b"\n" + first):
            self.assertEqual(same(whole(self.bench, data)), same(in_pieces(self.bench, data)), data)

    def test_pipelining(self):
        first, other = request(), request("/metadata/versions")
        alone = [same(whole(self.bench, data)) for data in (first, other)]
        for data, answers in ((first * 3, [0, 0, 0]), (first + other, [0, 1]), (other + first, [1, 0]),
                              (first + other[:20], [0])):
            for _ in range(2):
                talk = imds.Conversation(self.bench, "x")
                self.assertEqual(same(whole(self.bench, data, talk)), b"".join(alone[each] for each in answers))
            if data.endswith(other[:20]):  # the rest of it comes: a request, not the start of one
                self.assertTrue(talk.in_request)
                self.assertEqual(same(whole(self.bench, other[20:], talk)), alone[1])
        talk = imds.Conversation(self.bench, "x")  # a request that looks like one before, within a body
        start = request(EVENTS, "POST", ["Content-Length: %d" % len(first)])
        self.assertEqual(whole(self.bench, start, talk), b"")
        self.assertIn(b" 400 Bad Request", whole(self.bench, first, talk))

    def test_a_request_that_expects_100_continue(self):
        body = b'{"StartRequests":[]}'
        head = request(EVENTS, "POST", ["Expect: 100-continue", "Content-Length: %d" % len(body)])
        for _ in range(3):
            talk = imds.Conversation(self.bench, "x")
            whole(self.bench, request(), talk)  # whose answer may be given again
            self.assertEqual(whole(self.bench, head, talk), b"HTTP/1.1 100 Continue\r\n\r\n")
            self.assertTrue(talk.in_request)
            self.assertTrue(whole(self.bench, body, talk).startswith(b"HTTP/1.1 200 OK\r\n"))
            talk = imds.Conversation(self.bench, "x")
            self.assertEqual(whole(self.bench, head, talk), b"HTTP/1.1 100 Continue\r\n\r\n")
            self.assertTrue(talk.in_request)
            self.assertTrue(whole(self.bench, body, talk).startswith(b"HTTP/1.1 200 OK\r\n"))

    def test_what_can_not_be_read_is_read_each_time(self):
        for data in (b"nonsense\r\n\r\n", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"):
            for _ in range(2):
                self.assertIn(b" 400 Bad Request", whole(self.bench, data))
        self.assertEqual(len(self.bench.journal), 6)

    def test_it_does_not_grow(self):
        for number in range(2000):
            whole(self.bench, request(INSTANCE + "&x=%d" % number))
        self.assertLessEqual(len(self.bench.moment().answers), 256)
        self.clock.now += 1
        self.assertEqual(len(self.bench.moment().answers), 0)
        for size, counts in ((3000, [1, 0]), (5000, [1, 1])):
            data = request("/metadata/versions", headers=["X: " + "a" * size])
            self.assertEqual([self.worked(data)[0] for _ in range(2)], counts)

    def test_a_thousand_steps_beside_one_that_remembers_nothing(self):
        """Whatever is done in whatever order, an answer is the one that the service would give."""
        import random

        chance = random.Random(7)
        data = [request(), request(EVENTS), request(TOKEN + VAULT), request("/metadata/loadbalancer" + V), request("/x"),
                request("/metadata/instance/compute/name" + V + "&format=text"), request(TOKEN + VAULT + "&bypass_cache=true")]
        changes = [
            lambda: self.clock.advance(chance.choice([0, 0.1, 0.5, 1, 3])), lambda: self.clock.advance(chance.choice([60, 600])),
            lambda: self.bench.update({"compute": {"name": str(chance.random())}}),
            lambda: self.bench.identities(chance.choice([["system"], [], ["user:a"], ["user:a", "user:b"]])),
            lambda: self.bench.load_balancer(chance.choice([True, False])),
            lambda: self.bench.schedule("Freeze", after=chance.choice([0.1, 0.5, 30]), lasts=chance.choice([0.2, 5]))]
        with mock.patch.object(imds, "sign", side_effect=lambda content: content[-9:]):  # for it takes its time
            for _ in range(1000):
                if chance.random() < 0.3:
                    chance.choice(changes)()
                one = chance.choice(data)
                self.assertEqual(same(whole(self.bench, one)), same(in_pieces(self.bench, one)))


class Operations(unittest.TestCase):
    def setUp(self):
        self.clock = Steps()
        self.bench = bench(clock=self.clock)

    def test_instance_is_a_copy(self):
        self.bench.instance()["compute"]["name"] = "y"
        self.assertEqual(self.bench.instance()["compute"]["name"], "avset2")

    def test_update(self):
        self.assertIsNone(self.bench.update({"compute": {"tags": "Department:IT"}}))
        self.assertEqual(self.bench.instance()["compute"]["tagsList"], [{"name": "Department", "value": "IT"}])
        with self.assertRaises(ValueError):
            self.bench.update({"compute": []})

    def test_identities(self):
        self.assertEqual([each["type"] for each in self.bench.identities()], ["system"])
        given = self.bench.identities([{"type": "user", "name": "app", "clientId": "c"}, "system"])
        self.assertEqual(given, self.bench.identities())
        self.assertEqual([(each["type"], sorted(each)) for each in given],
                         [(kind, ["clientId", "objectId", "resourceId", "type"]) for kind in ("user", "system")])
        self.assertEqual(given[0]["clientId"], "c")
        with self.assertRaises(ValueError):
            self.bench.identities(["me"])
        self.assertEqual(self.bench.identities(), given)
        self.assertEqual(self.bench.identities([]), [])

    def test_load_balancer(self):
        self.assertIsNone(self.bench.load_balancer())
        sample = self.bench.load_balancer(True)
        self.assertEqual(sample, document("/metadata/loadbalancer" + V, self.bench))
        self.assertEqual(self.bench.load_balancer({"inboundRules": []}), {"loadbalancer": {
            "publicIpAddresses": [], "inboundRules": [], "outboundRules": []}})
        self.assertIsNone(self.bench.load_balancer(False))
        with self.assertRaises(ValueError):
            self.bench.load_balancer(5)

    def test_attested(self):
        def content(*arguments, **settings):
            answer = self.bench.attested(*arguments, **settings)
            self.assertEqual(list(answer), ["encoding", "signature"])
            return json.loads(imds.signed_content(base64.b64decode(answer["signature"])).decode())

        self.assertEqual(content("123")["nonce"], "123")
        self.assertEqual(sorted(content(api_version="2018-10-01")), ["nonce", "plan", "timeStamp", "vmId"])
        self.assertEqual(content(flaw="nonce")["nonce"], "0000000000")
        for arguments, settings in ((("a" * 33,), {}), ((5,), {}), ((), {"flaw": "boo"}), ((), {"api_version": "2000-01-01"})):
            with self.assertRaises(ValueError):
                self.bench.attested(*arguments, **settings)

    def test_clock(self):
        clock = imds.Clock(self.clock)
        self.bench = bench(clock=clock)
        self.bench.advance(5)
        self.assertEqual(clock(), NOW + 5)
        self.bench.freeze()
        self.clock.now += 100
        self.assertEqual(clock(), NOW + 5)
        self.bench.resume(2)
        self.clock.now += 10
        self.assertEqual(clock(), NOW + 25)
        self.bench.resume()
        self.clock.now += 10
        self.assertEqual(clock(), NOW + 35)
        nan = float("nan")
        for change, wrong in ((self.bench.advance, (-1, nan, "5", True, 1e12)), (self.bench.resume, (-1, nan, "5", True))):
            for value in wrong:
                with self.assertRaises(ValueError):
                    change(value)

    def test_what_they_take_and_give_can_be_json(self):
        for name, arguments in (
            ("instance", {}), ("update", {"patch": {"compute": {"name": "x"}}}), ("identities", {"identities": ["system"]}),
            ("load_balancer", {"load_balancer": True}), ("schedule", {"kind": "Reboot", "after": 30}),
            ("play", {"scenario": "redeploy"}),
            ("attested", {"nonce": "1"}), ("advance", {"seconds": 5}), ("freeze", {}), ("resume", {"scale": 2}),
        ):
            with self.subTest(name=name):
                self.assertIn(name, imds.OPERATIONS)
                json.dumps(getattr(self.bench, name)(**json.loads(json.dumps(arguments))))


class Exchanges(unittest.TestCase):
    def test_what_one_is(self):
        clock = Steps(NOW + 0.5)
        one = bench(clock=clock, vm=3)
        asked = imds.Request("GET", "/x", {"metadata": "true"})
        exchange = one.respond(asked, "10.0.0.9")
        self.assertEqual(exchange._fields, ("number", "time", "peer", "vm", "request", "response", "rule", "fault", "seconds"))
        self.assertEqual((exchange.number, exchange.time, exchange.peer, exchange.vm, exchange.request, exchange.response.status,
                          exchange.rule, exchange.fault, exchange.seconds),
                         (1, NOW + 0.5, "10.0.0.9", 3, asked, 404, "outside", None, 0.0))
        self.assertEqual([one.respond(asked).number for _ in range(3)], [2, 3, 4])
        self.assertIsNone(one.respond(imds.Request("GET", INSTANCE, {"metadata": "true"})).rule)
        refused = one.refuse("malformed", "\x16\x03", "10.0.0.8")
        self.assertEqual((refused.request.verb, refused.request.target, refused.response.status, refused.rule),
                         ("", "\x16\x03", 400, "malformed"))

    def test_a_fault_of_our_own_is_answered_and_reported(self):
        lines = []
        one = bench(log=lines.append)
        with mock.patch.object(one.service, "respond", side_effect=KeyError("boo\nfoo")):
            exchange = one.respond(imds.Request("GET", INSTANCE, {}), "10.0.0.9")
        self.assertEqual((exchange.response.status, exchange.response.body, exchange.rule),
                         (500, b'{ "error": "Server error" }', "failed"))
        self.assertTrue(lines[0].startswith("imds: Traceback"))
        self.assertTrue(all("\n" not in line for line in lines))
        self.assertTrue(lines[-1].endswith('"GET %s HTTP/1.1" 500 internal error' % INSTANCE))
        self.assertIn("KeyError", "".join(lines))
        self.assertFalse(exchange.response.repeats)


class Log(unittest.TestCase):
    def line(self, target="/x", rule="outside", verb="GET", now=NOW, **changes):
        response = imds.Response(imds.REFUSALS[rule].status if rule else 200, [], b"", rule, True)
        asked = imds.Request(verb, target, {}, b"", changes.pop("version", "HTTP/1.1"))
        return imds.log_line(imds.Exchange(1, now, "10.0.0.9", 0, asked, response, rule, changes.pop("fault", None), 0.0))

    def test_rows(self):
        stamp = time.localtime(NOW)
        self.assertEqual(self.line(), '10.0.0.9 - - [%02d/Feb/2026 %02d:%02d:%02d] "GET /x HTTP/1.1" 404 outside /metadata'
                         % (stamp.tm_mday, stamp.tm_hour, stamp.tm_min, stamp.tm_sec))
        for settings, end in (
            ({"rule": None, "target": INSTANCE}, '"GET /metadata/instance?api-version=2021-02-01 HTTP/1.1" 200 -'),
            ({"rule": "metadata"}, '"GET /x HTTP/1.1" 400 Metadata header missing'), ({"rule": "throttled"}, " 429 throttled"),
            ({"rule": "throttled-text"}, " 429 throttled"),
            ({"rule": "slow", "verb": "", "target": "GET /x"}, '"GET /x" 408 request took too long'),
            ({"target": '/"\x1b[31m'}, '"GET /\\x22\\x1b[31m HTTP/1.1" 404 outside /metadata'),
            ({"version": "HTTP/1.0"}, 'HTTP/1.0" 404 outside /metadata'),
            ({"verb": "", "target": "\x16\x03\xff", "rule": "malformed"}, '"\\x16\\x03\xff" 400 not an HTTP request'),
            ({"target": "/caf\xe9"}, '"GET /caf\xe9 HTTP/1.1" 404 outside /metadata'),
            ({"rule": "failed"}, " 500 internal error"),
            ({"rule": "version"}, " 400 api-version missing or unknown"), ({"rule": "path"}, " 404 not found"),
            ({"rule": "version-of-another"}, " 404 api-version unknown to this endpoint"),
            ({"rule": "several-identities"}, " 400 several identities, none named"), ({"rule": "verb"}, " 405 verb not allowed"),
        ):
            with self.subTest(settings=settings):
                self.assertTrue(self.line(**settings).endswith(end), self.line(**settings))
                self.assertNotIn("\n", self.line(**settings))

    def test_in_no_locale(self):
        old = locale.setlocale(locale.LC_ALL)
        self.addCleanup(locale.setlocale, locale.LC_ALL, old)
        months = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
        for name in ("C", "de_DE.UTF-8", "fr_FR.UTF-8", "ja_JP.UTF-8", "ru_RU.UTF-8", ""):
            try:
                locale.setlocale(locale.LC_ALL, name)
            except locale.Error:
                continue
            for number, month in enumerate(months):
                now = time.mktime((2026, number + 1, 15, 12, 0, 0, 0, 0, -1))
                self.assertIn(" [15/%s/2026 12:00:00] " % month if time.localtime(now).tm_hour == 12 else month,
                              self.line(now=now))
        with mock.patch("time.strftime", side_effect=AssertionError("which month it is depends on the locale")):
            self.line(now=NOW + 1)

    def test_years(self):
        for now, year in ((0, "19"), (3153600000, "20"), (32503000000, "2999")):
            self.assertRegex(self.line(now=now), r"\[\d\d/[A-Z][a-z]{2}/%s\d* \d\d:\d\d:\d\d\]" % year)

    @unittest.skipUnless(hasattr(time, "tzset"), "no time zones to set here")
    def test_the_local_time(self):
        self.addCleanup(time.tzset)
        with mock.patch.dict(os.environ, TZ="UTC-5"):
            time.tzset()
            self.assertIn("[07/Feb/2026 16:04:49]", self.line(now=NOW + 3))


class Journal(unittest.TestCase):
    def setUp(self):
        self.clock, self.lines = Steps(), []
        self.bench = bench(clock=self.clock, log=self.lines.append)

    def test_secrets_are_masked(self):
        headers = {"metadata": "true", "authorization": "Basic c2VjcmV0", "user-agent": "me"}
        exchange = self.bench.respond(imds.Request("GET", TOKEN + VAULT, headers))
        token = json.loads(exchange.response.body.decode())["access_token"]
        self.assertEqual(headers["authorization"], "Basic c2VjcmV0")  # the request itself is left alone
        for _ in range(2):
            whole(self.bench, request(TOKEN + VAULT, headers=["Authorization: Basic c2VjcmV0"]))
        self.assertEqual(len(self.bench.journal), 3)
        for kept in self.bench.journal:
            self.assertEqual(kept.request.headers["authorization"], "(masked)")
            self.assertEqual(json.loads(kept.response.body.decode()), dict(
                json.loads(exchange.response.body.decode()), access_token="(masked)"))
        text = repr(self.bench.journal) + "".join(self.lines)
        for secret in (token, token.rpartition(".")[2], "c2VjcmV0"):
            self.assertNotIn(secret, text)
        self.assertEqual(self.bench.journal[0].request.headers["user-agent"], "me")

    def test_what_is_given_again_holds_no_secret_in_the_journal(self):
        for _ in range(3):
            self.assertIn(b"access_token", whole(self.bench, request(TOKEN + VAULT)))
        self.assertNotIn("eyJ", repr(self.bench.journal))

    def test_what_is_no_secret_is_kept_as_it_was(self):
        exchange = self.bench.respond(imds.Request("GET", INSTANCE, {"metadata": "true"}), "10.0.0.9")
        self.assertEqual(self.bench.journal[-1], exchange)
        self.assertIs(imds.masked(exchange), exchange)

    def test_it_keeps_ten_thousand(self):
        for number in range(10050):
            self.bench.respond(imds.Request("GET", "/%d" % number, {}))
        self.assertEqual((len(self.bench.journal), self.bench.journal[0].number, self.bench.journal[-1].number),
                         (10000, 51, 10050))

    def test_what_is_large_is_cut(self):
        huge = imds.Request("POST", "/" + "a" * 60000,
                            dict({"x%d" % number: "b" * 1000 for number in range(60)}, metadata="true"),
                            b"c" * 65536)
        self.bench.respond(huge)
        kept = self.bench.journal[-1].request
        size = len(kept.target) + len(kept.body) + sum(len(name) + len(value) for name, value in kept.headers.items())
        self.assertLess(size, 40000)
        self.assertTrue(huge.target.startswith(kept.target) and huge.body.startswith(kept.body))
        self.bench.update({"compute": {"userData": "d" * 100000}})
        response = ask(INSTANCE, of=self.bench)
        self.assertGreater(len(response.body), 100000)
        self.assertLess(len(self.bench.journal[-1].response.body), 20000)

    def test_a_token_of_a_large_answer_is_masked_first(self):
        with mock.patch.object(imds, "jwt", return_value="s3cret" * 9000):
            ask(TOKEN + VAULT, of=self.bench)
        self.assertNotIn("s3cret", repr(self.bench.journal))

    def test_it_costs_little(self):
        asked = imds.Request("GET", INSTANCE, {"metadata": "true"})
        exchange = self.bench.respond(asked)
        begun = time.process_time()
        for _ in range(2000):
            imds.masked(exchange)
        self.assertLess((time.process_time() - begun) / 2000, 50e-6)
        self.assertEqual(claims(self.token())[0]["alg"], "RS256")

    def token(self):
        return json.loads(ask(TOKEN + VAULT, of=self.bench).body.decode())["access_token"]
