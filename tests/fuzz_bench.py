"""Rooms 6 and 7 under random input: playbooks, and HTTP under faults. CI only: python -m unittest tests/fuzz_bench.py"""

import json
import re
import unittest

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import imds
from tests.support import TARGET, Steps, bench

settings.register_profile("ci", max_examples=400, derandomize=True, deadline=None, database=None,
                          suppress_health_check=list(HealthCheck))
settings.load_profile("ci")

STATUSES = "400 403 404 410 429 500 502 503 504".split()
MANNERS = "reset hang cut drip portal broken redirect ok".split()  # huge is slow, and tried elsewhere
WHERES = ["", "instance: ", "instance/compute: ", "GET instance: ", "POST scheduledevents: ", "/metadata/identity: "]
times = st.builds("{}{}".format, st.integers(1, 500), st.sampled_from(["ms", "s", "m", ""]))
often = st.one_of(st.just(""), st.builds(" x{}".format, st.integers(1, 5)), st.builds(" for {}".format, times),
                  st.builds(" every {}".format, st.integers(1, 4)), st.sampled_from([" p 0.5", " p 0", " p 1", " always"]))
actions = st.one_of(st.sampled_from(STATUSES + MANNERS), st.builds("delay {}".format, times),
                    st.builds("delay {} {}".format, times, st.sampled_from(STATUSES + MANNERS)))
steps = st.builds("{}{}".format, actions, often)


def ending(listed):
    """Steps of which only the last may go on for ever."""
    return ", ".join([each for each in listed[:-1] if not re.search(" (every|p|always)", each)] + listed[-1:])


playbooks = st.builds("{}{}".format, st.sampled_from(WHERES), st.lists(steps, min_size=1, max_size=5).map(ending))
words = st.lists(st.sampled_from(STATUSES + MANNERS + """, : delay for every x x2 x0 p always 3s 0.2 1e9 -1s 99999999999h instance
    GET POST scheduledevents / .. metadata huge""".split()) | st.text(max_size=4), max_size=9).map(" ".join)
requests = st.sampled_from([
    TARGET, "/metadata/instance?api-version=2021-02-01", "/metadata/instance/compute?api-version=2021-02-01", "/",
    "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net", "/metadata/nonsense",
    "/metadata/scheduledevents?api-version=2020-07-01", "/metadata/loadbalancer?api-version=2021-02-01"])
verbs = st.sampled_from(["GET", "GET", "GET", "POST", "HEAD", "PUT"])


def head(verb, target, more=""):
    return ("%s %s HTTP/1.1\r\nHost: localhost\r\nMetadata: true\r\n%s\r\n" % (verb, target, more)).encode()


class Playbooks(unittest.TestCase):
    @given(st.one_of(st.text(), words, playbooks), st.integers(0, 2**31))
    def test_a_value_error_or_a_playbook(self, text, seed):
        of = bench()
        try:
            said = of.fail(text, seed=seed)
        except ValueError as error:
            self.assertTrue(str(error))
            self.assertEqual(of.faults(), [])
            return
        self.assertEqual(said["seed"], seed)
        for seconds in (0, 0, 1, 60, 0, 3600, 1e6):
            of.clock.advance(seconds)
            for verb, target in (("GET", TARGET), ("POST", "/metadata/scheduledevents?api-version=2020-07-01")):
                exchange = of.respond(imds.Request(verb, target, {"metadata": "true"}, b""))
                json.dumps(exchange.as_dict())
                str(exchange)

    @given(playbooks)
    def test_what_the_grammar_makes_is_taken(self, text):
        of = bench()
        of.fail(text)
        self.assertEqual(of.faults(), [text])

    @given(playbooks, st.lists(st.tuples(verbs, requests), max_size=12), st.integers(0, 9))
    def test_a_seed_makes_it_happen_again(self, text, asked, seed):
        courses = []
        for _ in range(2):
            of = bench()
            of.fail(text, seed=seed)
            courses.append([of.respond(imds.Request(verb, target, {"metadata": "true"}, b"")).fault for verb, target in asked])
        self.assertEqual(courses[0], courses[1])

    @given(st.lists(steps, min_size=1, max_size=6), st.integers(1, 40))
    def test_times_are_kept(self, listed, count):
        listed = [step for step in listed if not re.search(" (for|every|p|always)", step)]
        of = bench()
        if listed:
            of.fail(", ".join(listed), seed=1)
        expected = sum(int((re.search(r" x(\d+)\Z", step) or [0, 1])[1]) for step in listed)
        faults = [of.respond(imds.Request("GET", TARGET, {"metadata": "true"}, b"")).fault for _ in range(count)]
        self.assertEqual(sum(fault is not None for fault in faults), min(expected, count))


class Machine(unittest.TestCase):
    @given(st.lists(playbooks, max_size=3), st.lists(st.tuples(verbs, requests), min_size=1, max_size=10),
           st.lists(st.integers(1, 200), max_size=12), st.integers(0, 99))
    def test_the_same_bytes_however_they_come(self, texts, asked, sizes, seed):
        data, sent = b"".join(head(*each) for each in asked), []
        for cuts in ([], sizes):
            of = bench(clock=Steps())
            for text in texts:
                of.fail(text, seed=seed)
            talk, at, parts = imds.Conversation(of), 0, []
            for size in cuts + [len(data)]:
                if talk.ending:
                    break
                piece, at = data[at:at + size], at + size
                parts += talk.receive(piece) if piece else []
                while talk.pending and not talk.ending:
                    parts += talk.receive()
            sent.append((b"".join(part for _, part in parts), talk.ending, sum(seconds for seconds, _ in parts)))
            for seconds, part in parts:
                self.assertIsInstance(part, bytes)
                self.assertTrue(0 <= seconds <= 86400)
        self.assertEqual(sent[0][:2], sent[1][:2])
        self.assertAlmostEqual(sent[0][2], sent[1][2])

    @given(st.lists(playbooks, max_size=3), st.binary(max_size=300), st.integers(0, 9))
    def test_any_bytes(self, texts, data, seed):
        of = bench()
        for text in texts:
            of.fail(text, seed=seed)
        for start in (b"", head("GET", TARGET)):
            talk = imds.Conversation(of)
            talk.receive(start + data)
            while talk.pending and not talk.ending:
                talk.receive()
            self.assertIn(talk.ending, ("", "close", "reset", "hang"))
            of.lint()

    @given(playbooks, st.lists(st.tuples(verbs, requests), max_size=20), st.integers(0, 9))
    def test_it_recovers(self, text, asked, seed):
        of = bench()
        of.fail(text, seed=seed)
        for verb, target in asked:
            imds.Conversation(of).receive(head(verb, target))
        of.recover()
        talk = imds.Conversation(of)
        self.assertTrue(talk.receive(head("GET", TARGET))[0][1].endswith(b"avset2"))
        self.assertEqual((talk.ending, of.faults()), ("", []))


class Control(unittest.TestCase):
    plain = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                         lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                         max_leaves=6)

    @given(st.sampled_from(imds.OPERATIONS), st.data())
    def test_good_or_refused(self, name, data):
        import inspect

        names = list(inspect.signature(getattr(imds.Bench, name)).parameters)[1:] + ["vm", "nonsense"]
        arguments = data.draw(st.dictionaries(st.sampled_from(names), self.plain, max_size=4))
        of = imds.Bench(imds.Clock(lambda: 1.7e9), control=True)
        of.respond(imds.Request("GET", TARGET, {"metadata": "true"}, b""))
        response = of.respond(imds.Request("POST", "/imds/" + name, {"metadata": "true", "host": "localhost"},
                                           json.dumps(arguments).encode())).response
        self.assertIn(response.status, (200, 400), (name, arguments, response.body))
        json.loads(response.body.decode())
        after = of.respond(imds.Request("GET", "/metadata/versions", {"metadata": "true"}, b"")).response
        self.assertIn(after.status, (200, 400, 403, 404, 410, 429, 500, 502, 503, 504))
