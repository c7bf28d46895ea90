"""Rooms 2 to 7 under random input, and HTTP beside h11. CI only: python -m unittest tests/fuzz.py"""

import base64
import json
import unittest

import h11
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import imds
from tests.support import NOW, TARGET, bench, conversation, service


def examples(count):
    """So many examples, the same in each run."""
    return settings(max_examples=count, derandomize=True, deadline=None, database=None,
                    suppress_health_check=list(HealthCheck))


# --- HTTP

TOKENS = "GET POST PUT HEAD OPTIONS get x!#$%&'*+-.^_`|~9".split()
TARGETS = (TARGET, "/", "/metadata", "/metadata/instance?api-version=2021-02-01", "*", "/%", "/%00", "/a?b=c&b=c", "//x//?",
           "/metadata/scheduledevents?api-version=2020-07-01", "http://x/metadata/versions", "/" + "a" * 300)
NAMES = ("Host", "Metadata", "Connection", "Content-Length", "Transfer-Encoding", "Expect", "X-Forwarded-For", "X", "a_b")
VALUES = ("localhost", "true", "True,true", "close", "keep-alive", "keep-alive,\tclose", "0", "3", "chunked", "CHUNKED", "gzip",
          "100-continue", "", " x ", "a,b", "99999999999999999999", "-1", "\x80\xff", "a\tb")
PIECES = ("\r\n", "\n", "\r", " ", ":", "\0", "0\r\n\r\n", "3\r\nabc\r\n", "3;x=y\r\nabc\r\n", "ffff\r\n", "\r\n\r\n",
          "GET / HTTP/1.1\r\n", "Host: localhost\r\n", "Metadata: true\r\n", "Content-Length: 3\r\n", "abc",
          "Transfer-Encoding: chunked\r\n", " HTTP/1.1\r\n", " HTTP/1.0\r\n", " HTTP/1.2\r\n", " HTTP/2.0\r\n", "HTTP/1.1")


@st.composite
def written(draw):
    """A request as bytes that is right but for what chance makes of it."""
    line = "%s %s HTTP/1.%s" % (draw(st.sampled_from(TOKENS)), draw(st.sampled_from(TARGETS)), draw(st.sampled_from("1110")))
    lines = [line, "Host: localhost"] + ["%s: %s" % pair for pair in draw(st.lists(
        st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=4))]
    body = draw(st.sampled_from(["", "abc", "3\r\nabc\r\n0\r\n\r\n", "0\r\nT: x\r\n\r\n", "3;x\r\nabc\r\n0\r\n\r\n"]))
    return ("\r\n".join(lines + ["", body])).encode("latin-1")


odd = st.one_of(st.sampled_from(PIECES).map(str.encode), st.binary(max_size=9))
soup = st.lists(st.one_of(written(), written(), odd), max_size=6).map(b"".join)
cuts = st.lists(st.integers(1, 60), min_size=1, max_size=5)


def in_pieces(data, sizes):
    """All that goes back, the ending, and the requests that were understood, of bytes that come in such pieces."""
    of, sent, at, turn = bench(), b"", 0, 0
    talk = conversation(of)
    while at < len(data) and not talk.ending:
        sent += b"".join(part for _, part in talk.receive(data[at:at + sizes[turn % len(sizes)]]))
        at, turn = at + sizes[turn % len(sizes)], turn + 1
        while talk.pending:
            sent += b"".join(part for _, part in talk.receive())
    understood = [(each.request.verb, each.request.target, each.request.body) for each in of.journal if each.request.verb]
    return sent, talk.ending, understood


def h11_reads(replies, verbs):
    """The statuses of all replies, read by h11 as the client that asked these; whether it then has to close."""
    client, statuses = h11.Connection(h11.CLIENT), []
    for verb in verbs:
        client.send(h11.Request(method=verb, target="/", headers=[("Host", "x")]))
        client.send(h11.EndOfMessage())
        client.receive_data(replies)
        event = client.next_event()
        while not isinstance(event, h11.EndOfMessage):
            if isinstance(event, (h11.Response, h11.InformationalResponse)):
                statuses.append(event.status_code)
            elif not isinstance(event, h11.Data):
                raise AssertionError("a reply is not complete: %r" % replies[:200])
            event = client.next_event()
        replies = client.trailing_data[0]
        over = client.their_state is h11.MUST_CLOSE
        client = h11.Connection(h11.CLIENT)
    return statuses, over, replies


class Http(unittest.TestCase):
    @examples(1500)
    @given(soup, cuts)
    def test_pieces_make_no_difference(self, data, sizes):
        self.assertEqual(in_pieces(data, sizes), in_pieces(data, [len(data) or 1]))

    @examples(500)
    @given(st.lists(st.tuples(st.sampled_from(["GET", "POST", "HEAD"]), st.sampled_from(TARGETS[:4]), st.binary(max_size=50),
                              st.booleans()), min_size=1, max_size=40), cuts)
    def test_pipelines_of_h11_are_answered_one_by_one(self, requests, sizes):
        sent, verbs = b"", []
        for verb, target, body, chunked in requests:
            writer = h11.Connection(h11.CLIENT)
            framing = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(body)))
            sent += writer.send(h11.Request(method=verb, target=target, headers=[("Host", "localhost"), framing]))
            sent += writer.send(h11.Data(data=body)) + writer.send(h11.EndOfMessage())
            verbs.append(verb)
        replies, ending, understood = in_pieces(sent, [size * 20 for size in sizes])
        statuses, over, rest = h11_reads(replies, verbs)
        self.assertEqual((len(statuses), ending, over, rest), (len(requests), "", False, b""))
        self.assertEqual(understood, [(verb, target, body) for verb, target, body, _ in requests])

    @examples(1000)
    @given(soup)
    def test_every_reply_is_http(self, data):
        replies, ending, understood = in_pieces(data, [len(data) or 1])
        verbs = [verb if verb == "HEAD" else "GET" for verb, _, _ in understood]
        if len(verbs) < len([each for each in replies.split(b"HTTP/1.1 ")[1:] if not each.startswith(b"100 ")]):
            verbs.append("HEAD" if replies.rpartition(b"HTTP/1.1 ")[2].endswith(b"\r\n\r\n") else "GET")
        if not verbs:  # at most an interim answer
            self.assertIn(replies, (b"", b"HTTP/1.1 100 Continue\r\n\r\n"))
            return
        statuses, over, rest = h11_reads(replies, verbs)
        self.assertTrue(set(statuses).issubset({100, 200, 400, 404, 405, 408, 413, 414, 431}), statuses)
        self.assertEqual(over, ending == "close")
        self.assertIn(rest, (b"", b"HTTP/1.1 100 Continue\r\n\r\n"))

    @examples(1500)
    @given(st.one_of(written(), st.lists(written(), max_size=3).map(b"".join)))
    def test_what_is_understood_is_what_h11_understands(self, data):
        """Else a request could be smuggled past one of two that stand behind one another."""
        _, _, ours = in_pieces(data, [len(data)])
        theirs, server = [], h11.Connection(h11.SERVER)
        server.receive_data(data)
        try:
            while len(theirs) < len(ours):
                event = server.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    break
                if isinstance(event, h11.Request):
                    asked, body = event, b""
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    theirs.append((asked.method.decode(), asked.target.decode(), body))
                    rest = server.trailing_data[0]
                    server = h11.Connection(h11.SERVER)
                    server.receive_data(rest)
        except h11.RemoteProtocolError:
            pass
        self.assertEqual(ours, theirs[:len(ours)])

    @examples(100)
    @given(st.integers(65530, 65545), st.sampled_from([b"\r\n\r\n", b"\n\n", b"\n\r\n"]), cuts)
    def test_limits(self, size, end, sizes):
        line = b"GET / HTTP/1.1\r\n"
        data = line + b"Host: localhost\r\nX: ".ljust(size, b"a") + end
        whole = in_pieces(data, [len(data)])
        self.assertEqual(whole[0][9:12], b"400" if size <= 65536 else b"431")
        self.assertEqual(in_pieces(data, [len(line) + size - 30] + sizes[:1] * 40), whole)

    @examples(300)
    @given(soup)
    def test_what_is_kept_is_bounded(self, data):
        talk = conversation()
        for _ in range(40):
            talk.receive(data * 50)
            if talk.ending:
                break
        self.assertLess(len(talk._unread), 2 * 65536 + 40 * len(data) * 50)


class Targets(unittest.TestCase):
    @examples(1500)
    @given(st.one_of(st.text(), st.sampled_from(TARGETS), st.text("/%?&=+.;a0metdi-").map("/metadata/".__add__)),
           st.dictionaries(st.sampled_from(["metadata", "x-forwarded-for", "host"]), st.sampled_from(VALUES)),
           st.sampled_from(TOKENS), st.one_of(st.binary(max_size=40), st.text().map(json.dumps).map(str.encode)))
    def test_every_request_has_an_answer(self, target, headers, verb, body):
        response = service(profile="scaleset", load_balancer=True).respond(imds.Request(verb, target, headers, body))
        self.assertIn(response.status, (200, 400, 404, 405))
        self.assertEqual(dict(response.headers)["Content-Length"], str(len(response.body)))


# --- documents

KNOWN = sorted({name for path in imds.walk(imds.everything()) for name in path.split("/") if not name.isdigit()})
secrets = st.integers(0, 99).map("Qz{}x".format)
letters = st.one_of(secrets, st.text(max_size=6), st.sampled_from(["", "true", "10.1.2.3", "a:b;c:d", "/subscriptions/x/y", "::1", "0"]))
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), letters)
names = st.one_of(st.sampled_from(KNOWN + list(imds.PARTS)), secrets, st.text(max_size=4))
nodes = st.recursive(leaves, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=4)),
                     max_leaves=12)


def rarely(often, seldom):
    """One of two strategies, the second once in ten times."""
    return st.integers(0, 9).flatmap(lambda chance: seldom if chance == 9 else often)


def shaped(shown):
    """A node of the shape of a template, with something missing or odd now and then."""
    if isinstance(shown, dict):
        inner = st.fixed_dictionaries({}, optional={name: shaped(child) for name, child in shown.items()})
        return rarely(inner, nodes)
    if isinstance(shown, list):
        return st.lists(shaped(shown[0]), max_size=2)
    return rarely(letters, leaves)


instances = st.one_of(shaped({name: imds.everything()[name] for name in ("compute", "network")}), nodes)
wholes = st.one_of(instances, st.fixed_dictionaries({"instance": instances}, optional={
    "scheduledevents": nodes, "identity": nodes, "loadbalancer": nodes, "attested": nodes}))


def attempt(function, *arguments):
    """What a function returns, or None where it raises ValueError: nothing else may come."""
    try:
        return function(*arguments)
    except ValueError:
        return None


class Documents(unittest.TestCase):
    @examples(600)
    @given(instances)
    def test_complete_and_view(self, document):
        completed = attempt(imds.complete, document)
        if completed is None:
            return
        self.assertEqual(imds.complete(completed), completed)
        json.dumps(completed, allow_nan=False).encode()
        for version in ("2017-03-01", "2017-04-02", "2021-02-01", "2025-04-07", "2025-11-15"):
            seen = imds.view(completed, version)
            self.assertEqual(list(seen), sorted(seen))
            level = [seen]
            while level:
                for node in level:
                    self.assertIsInstance(node, (str, dict, list))
                    imds.format_text(node)
                level = [child for node in level for _, child in imds.children(node)]

    @examples(600)
    @given(wholes)
    def test_redact(self, document):
        parts = attempt(imds.split_document, document)
        if parts is None:
            return
        vm = {name: part for name, part in parts.items() if part is not None}
        redacted = imds.redact(vm)
        self.assertEqual(redacted, imds.redact(vm))
        self.assertNotIn("Qz", json.dumps(redacted, allow_nan=False))
        if attempt(service, vm):
            service(redacted)  # it can still be served

    @examples(600)
    @given(st.text(), st.one_of(st.text(), nodes.map(lambda node: json.dumps(node))),
           st.one_of(st.sampled_from(list(imds.walk(imds.make_vm("scaleset")))), st.text(), names))
    def test_assign(self, text, value, path):
        vm = imds.make_vm("scaleset")
        for name in (path, path.replace("/", "."), text):
            changed = attempt(imds.assign, vm, name, value)
            if changed is not None:
                json.dumps(changed, allow_nan=False).encode()
        self.assertEqual(vm, imds.make_vm("scaleset"))

    @examples(400)
    @given(nodes, nodes)
    def test_change_and_diff(self, one, other):
        of = service(profile="scaleset")
        attempt(of.update, one)
        json.dumps(of.instance, allow_nan=False).encode()
        self.assertEqual(list(imds.diff(of.instance, of.instance)), [])
        list(imds.diff(one, other))
        list(imds.misspelled(one if isinstance(one, dict) else {}, imds.everything()))

    @examples(400)
    @given(nodes)
    def test_parts(self, node):
        for settings_of in ({"identities": node}, {"load_balancer": node}, {"versions": node}, {"cloud": node}, {"profile": node}):
            try:
                of = service(**settings_of)
            except (ValueError, TypeError):  # TypeError: for what can't be walked through
                continue
            of.respond(imds.Request("GET", "/metadata/loadbalancer?api-version=2021-02-01", {"metadata": "true"}))
            of.identities()
        attempt(imds.check_event, node)

    @examples(400)
    @given(st.one_of(st.binary(max_size=60).map(base64.b64encode).map(bytes.decode), st.text(), nodes))
    def test_attested_content(self, signature):
        attempt(imds.attested_content, {"signature": signature})

    @examples(400)
    @given(st.one_of(st.text(), st.text("user:sytem,clien_id=-xbjc")))
    def test_identities(self, spec):
        said = attempt(imds.read_identity, spec)
        if said is not None:
            service(identities=[said]).identities()


# --- times

NOW_TEXTS = ("Tue, 16 Mar 2021 00:58:46 GMT", "2021-03-16T00:58:46Z", "2021-03-16T00:58:46.123+02:00", "20210316T005846Z",
             "9999-12-31T23:59:59-23:59", "1970-01-01T00:00:00+23:59", "Tue, 16 Mar 2021 00:58:46 +9999", "2021-02-30 00:00")


@st.composite
def times(draw):
    """A time in one of its forms, with a piece of it replaced."""
    text = draw(st.sampled_from(NOW_TEXTS))
    at, size = draw(st.integers(0, len(text))), draw(st.integers(0, 4))
    return text[:at] + draw(st.one_of(st.text("0123456789+-:TZ, ", max_size=4), st.text(max_size=3))) + text[at + size:]


class Times(unittest.TestCase):
    @examples(2000)
    @given(st.one_of(times(), st.text()))
    def test_a_time_or_a_value_error(self, text):
        seconds = attempt(imds.parse_time, text)
        if seconds is not None:
            self.assertTrue(0 <= seconds <= 253402300799)
            self.assertEqual(imds.parse_time(imds.http_date(seconds)), int(seconds))

    @examples(500)
    @given(st.integers(0, 253402300799))
    def test_there_and_back(self, seconds):
        self.assertEqual(imds.parse_time(imds.http_date(seconds)), seconds)

    @examples(300)
    @given(st.sampled_from(sorted(imds.EVENT_TYPES)), st.one_of(times(), st.text()))
    def test_an_event_of_a_document_can_be_listed(self, kind, not_before):
        document = {"instance": {}, "scheduledevents": {"Events": [{"EventId": "x", "EventType": kind, "NotBefore": not_before}]}}
        of = attempt(service, document)
        if of is not None:
            response = of.respond(imds.Request("GET", "/metadata/scheduledevents?api-version=2020-07-01", {"metadata": "true"}))
            self.assertEqual(response.status, 200)
            json.loads(response.body.decode())

    @examples(400)
    @given(st.floats(), st.floats(), st.floats())
    def test_clocks(self, one, other, scale):
        clock = imds.Clock(lambda: NOW)
        for change in (lambda: clock.advance(one), lambda: clock.resume(scale), lambda: clock.advance(other)):
            attempt(change)
            self.assertTrue(0 <= clock() <= 32503679999)

    @examples(400)
    @given(st.one_of(st.text(), st.text("0123456789.-smh")))
    def test_durations(self, text):
        attempt(imds.duration, text)
