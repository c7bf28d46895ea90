"""Room 6, and 10 for exec --lint: the judge of clients, each rule with a journal that breaks it and one that nearly does."""

import sys
import unittest

import imds
from tests.support import EVENTS, NOW, OK, TARGET, TOKEN, VAULT, Steps, V, ask, bench, run

ME = {"metadata": "true", "user-agent": "me/1"}
NAMED, OTHER = {"user-agent": "me/1"}, {"metadata": "true", "user-agent": "other"}
UNKNOWN = "/metadata/instance?api-version=2999-01-01"
ROOT = "/metadata/instance" + V
NEWEST = "/metadata/instance?api-version=2025-04-07"
LEAF = "/metadata/instance/compute/%s?api-version=2025-04-07&format=text"
DIGITAL_OCEAN = "/metadata/v1.json"  # where that cloud's programs ask at the same address
RESOURCE = TOKEN + "&resource=https%3A%2F%2Fmanagement.azure.com"


def with_faults(*playbooks):
    of = bench(clock=Steps())
    for playbook in playbooks:
        of.fail(playbook)
    return of


def judged(rows, *playbooks, peers=("-",)):
    """The rules that a journal breaks. A row: seconds after the one before, target, headers, verb."""
    of = with_faults(*playbooks)
    for number, (seconds, target, headers, verb) in enumerate(rows):
        of.clock.advance(seconds)
        of.respond(imds.Request(verb, target, dict(headers), b""), peers[number % len(peers)])
    return [finding["rule"] for finding in of.lint()]


def get(seconds, target, headers=ME):
    return seconds, target, headers, "GET"

class Rules(unittest.TestCase):
    def test_single_requests(self):
        for rule, bad, good in (  # rows that break it, each alone, and rows that do not
            ("no-metadata-header",
             [get(0, NEWEST, NAMED), get(0, NEWEST, dict(NAMED, metadata="1")), get(0, EVENTS, NAMED)],
             [get(0, NEWEST), get(0, NEWEST, dict(NAMED, metadata="True")), get(0, TOKEN + VAULT, NAMED), get(0, "/", NAMED)]),
            ("through-a-proxy",
             [get(0, "http://169.254.169.254" + NEWEST), get(0, NEWEST, dict(ME, via="1.1 squid")),
              get(0, NEWEST, dict(ME, **{"x-forwarded-for": "10.0.0.1"}))],
             [get(0, NEWEST), get(0, NEWEST, dict(ME, host="169.254.169.254")), get(0, NEWEST, dict(ME, forwarded="x"))]),
            ("no-api-version",
             [get(0, "/metadata/instance"), get(0, "/metadata/instance?api-version="), get(0, "/metadata/identity/oauth2/token"),
              get(0, "/metadata/instance/compute/name?format=text"), get(0, "/metadata/instance?version=2025-04-07")],
             [get(0, NEWEST), get(0, "/metadata/versions"), get(0, "/"), get(0, "/metadata/instance", NAMED),
              get(0, "/metadata/nonsense")]),
            ("old-api-version",
             [get(0, "/metadata/instance?api-version=2017-08-01"), get(0, ROOT), get(0, LEAF.replace("2025-04-07", "2019-06-01")),
              get(0, "/metadata/scheduledevents?api-version=2019-01-01"),
              get(0, "/metadata/instance?api-version=2023-02-07")],  # NOW is 2026-02-07
             [get(0, NEWEST), get(0, "/metadata/instance?api-version=2023-07-01"), get(0, EVENTS), get(0, TOKEN + VAULT),
              get(0, "/metadata/scheduledevents?api-version=2019-08-01"), get(0, "/metadata/instance"), get(0, "/")]),
            ("preview-api-version",
             [get(0, "/metadata/instance?api-version=2017-03-01"), get(0, "/metadata/scheduledevents?api-version=2017-03-01")],
             [get(0, "/metadata/instance?api-version=2017-04-02"), get(0, NEWEST)]),
            ("leaf-as-json",
             [get(0, "/metadata/instance/compute/name" + V), get(0, "/metadata/instance/compute/name" + V + "&format=json")],
             [get(0, "/metadata/instance/compute/name" + V + "&format=text"), get(0, "/metadata/instance/compute" + V),
              get(0, "/metadata/instance/compute/name"), get(0, "/metadata/instance/compute/nome" + V)]),
            ("follows-a-redirect",
             [get(0, "/redirected" + NEWEST), get(0, "/redirected/")],
             [get(0, NEWEST), get(0, "/redirect" + NEWEST), get(0, "/redirectedly")]),
            ("no-user-agent",
             [get(0, NEWEST, OK), get(0, TOKEN + VAULT, OK), get(0, NEWEST, dict(OK, **{"user-agent": ""}))],
             [get(0, NEWEST), get(0, "/", OK)]),
        ):
            for row in bad:
                with self.subTest(rule=rule, bad=row):
                    self.assertIn(rule, judged([row]))
            for row in good:
                with self.subTest(rule=rule, good=row):
                    self.assertNotIn(rule, judged([row]))

    def test_courses(self):
        approve = (0, EVENTS, ME, "POST")
        for rule, playbooks, bad, good in (
            ("several-documents", [], [get(0, NEWEST), get(4, NEWEST)],
             [[get(0, NEWEST)], [get(0, NEWEST), get(6, NEWEST)], [get(0, NEWEST), get(1, NEWEST, dict(ME, **{"user-agent": "x"}))],
              [get(0, LEAF % "name"), get(0, LEAF % "zone")]]),
            ("several-documents", ["500"], [get(0, NEWEST), get(1, NEWEST), get(1, NEWEST)], [[get(0, NEWEST), get(1, NEWEST)]]),
            ("polls-too-often", [], [get(0, EVENTS), get(0.5, EVENTS)],
             [[get(0, EVENTS), get(1, EVENTS), get(1, EVENTS)], [get(0, EVENTS), approve, get(1, EVENTS)],
              [get(0, EVENTS), get(0.1, EVENTS, dict(ME, **{"user-agent": "other"}))]]),
            *(("polls-too-often", [fault], None, [[get(0, EVENTS), get(0.5, EVENTS)]])
              for fault in ("scheduledevents: reset", "scheduledevents: cut", "scheduledevents: 500", "scheduledevents: delay 5s")),
            ("no-pause", ["500 x2"], [get(0, NEWEST), get(0.1, NEWEST)],
             [[get(0, NEWEST), get(1, NEWEST), get(2, NEWEST)], [get(0, NEWEST), get(0, LEAF % "name")]]),
            ("no-pause", ["429 x9"], [get(0, NEWEST), get(0, NEWEST)], [[get(0, NEWEST), get(0.5, NEWEST), get(1, NEWEST)]]),
            ("no-pause", ["404 x9"], None, [[get(0, NEWEST), get(0, NEWEST)]]),
            ("no-pause", ["delay 300ms 500 x5"], [get(0, NEWEST), get(0.3, NEWEST)], [[get(0, NEWEST), get(1.3, NEWEST)]]),
            ("no-pause", ["POST scheduledevents: 500"], None, [[approve, get(0.1, EVENTS)]]),
            *((rule, [fault], None, [[get(0, target), get(1, target)]]) for rule, target in (
                ("several-documents", NEWEST), ("token-again", TOKEN + VAULT)) for fault in (
                "reset", "cut", "hang", "broken", "delay 4s")),
            ("several-documents", ["delay 300ms x2"], [get(0, NEWEST), get(1, NEWEST)], []),
            ("gives-up-on-410", ["410 for 60s"], [get(0, NEWEST), get(10, NEWEST), get(20, NEWEST)],
             [[get(0, NEWEST)] + [get(10, NEWEST)] * 6, [get(0, NEWEST), get(60, NEWEST)]]),
            ("gives-up-on-410", ["410 x3"], [get(0, NEWEST), get(0, NEWEST, OTHER), get(60, NEWEST, OTHER)], []),
            ("gives-up-on-410", ["410 always"], [get(0, NEWEST)], [[get(0, NEWEST)] + [get(10, NEWEST)] * 7]),
            ("repeats-a-400", [], [get(0, "/metadata/instance"), get(60, "/metadata/instance")],
             [[get(0, "/metadata/instance"), get(1, NEWEST)], [get(0, "/metadata/instance", NAMED), get(1, "/metadata/instance")],
              [get(0, "/metadata/instance/a" + V), get(0, "/metadata/instance/a" + V)],  # that is 404
              [(0, "/latest/api/token", ME, "PUT"), (1, "/latest/api/token", ME, "PUT")]]),  # is it AWS?
            ("repeats-a-400", [], [get(at, "/metadata/instance", dict(ME, **{"x-ms-client-request-id": str(at)})) for at in (0, 9)], []),
            ("gives-up-on-410", ["410 always"], None, [[get(0, "/latest/meta-data/", NAMED)], [get(0, DIGITAL_OCEAN, NAMED)]]),
            *((rule, [], None, [[get(0, DIGITAL_OCEAN, NAMED), get(1, DIGITAL_OCEAN, NAMED), get(2, "/metadata/v1/id", NAMED)]])
              for rule in ("no-metadata-header", "repeats-a-400")),
            ("no-pause", ["503 x2"], None, [[get(0, DIGITAL_OCEAN, NAMED)] * 3, [get(0, "/latest/meta-data/", NAMED)] * 3]),
            ("identity-burst", ["delay 500ms always"], [get(0.03, TOKEN + VAULT)] * 6, [[get(0.2, TOKEN + VAULT)] * 6]),
            ("repeats-a-400", ["400"], None, [[get(0, NEWEST), get(1, NEWEST)]]),  # the second was answered
            ("repeats-a-400", [], None, [[get(0, TOKEN + VAULT, NAMED), get(0, TOKEN + VAULT)] * 2,  # a probe, and a token
                                         [get(at, "/metadata/identity/oauth2/token") for at in (0, 1)],  # a probe of earlier SDKs
                                         [get(0, UNKNOWN), get(0, NEWEST)] * 2]),  # each program comes to terms
            ("repeats-a-400", [], [get(0, UNKNOWN), get(1, UNKNOWN)], []),
            ("identity-burst", [], [get(0, TOKEN + VAULT)] * 6, [[get(0, TOKEN + VAULT)] * 5, [get(0.1, TOKEN + VAULT)] * 12,
                                                                 [get(0, NEWEST)] * 12]),
            ("token-again", [], [get(0, TOKEN + VAULT), get(3600, TOKEN + VAULT)],
             [[get(0, TOKEN + VAULT)], [get(0, TOKEN + VAULT), get(0, RESOURCE)],
              [get(0, TOKEN + VAULT), get(0, TOKEN + VAULT + "&bypass_cache=true")],
              [get(0, TOKEN + VAULT), get(0, TOKEN + VAULT, OTHER)], [get(0, TOKEN + VAULT), get(43200, TOKEN + VAULT)]]),
            ("identity-burst", [], [get(0, TOKEN.replace("metadata", "Metadata") + VAULT)] * 6, []),
            ("token-again", [], None, [[get(0, TOKEN + VAULT), get(80000, TOKEN + VAULT, OTHER), get(6100, TOKEN + VAULT, OTHER)]]),
            ("token-again", [], [get(0, TOKEN + VAULT), get(80000, TOKEN + VAULT, OTHER), get(60, TOKEN + VAULT, OTHER)], []),
            ("token-again", ["500"], None, [[get(0, TOKEN + VAULT), get(5, TOKEN + VAULT)]]),
        ):
            if bad:
                with self.subTest(rule=rule, bad=bad, playbooks=playbooks):
                    self.assertIn(rule, judged(bad, *playbooks))
            for rows in good:
                with self.subTest(rule=rule, good=rows, playbooks=playbooks):
                    self.assertNotIn(rule, judged(rows, *playbooks))

    def test_a_token_that_has_expired_may_be_asked_again(self):
        self.assertNotIn("token-again", judged([get(0, TOKEN + VAULT), get(90000, TOKEN + VAULT)]))

    def test_the_newest_that_is_offered_is_not_old(self):
        for settings in ({"versions": ["2021-02-01"]}, {"as_of": "2018"}):
            with imds.Emulator(**settings) as vm:
                for _ in range(2):
                    self.assertEqual(imds.get("compute/name", endpoint=vm.url), "avset2")
                    vm.clock.advance(6)
                self.assertEqual(vm.lint(), [])
        of = bench(versions=["2019-06-01", "2021-02-01"])
        for target in ("/metadata/versions", "/metadata/instance?api-version=2021-02-01"):
            of.respond(imds.Request("GET", target, ME))
        self.assertEqual(of.lint(), [])

    def test_two_clients_are_not_one(self):
        for rows in ([get(0, NEWEST)] * 2, [get(0, EVENTS)] * 2, [get(0, TOKEN + VAULT)] * 2, [get(0, "/metadata/instance")] * 2):
            self.assertTrue(judged(rows))
            self.assertEqual(set(judged(rows, peers=("10.0.0.1", "10.0.0.2"))) - {"no-api-version"}, set(), rows)

    def test_a_good_client(self):
        for rows in (
            [], [get(0, NEWEST)], [get(0, NEWEST)] + [get(1, EVENTS)] * 30, [get(0, TOKEN + VAULT), get(0, RESOURCE)],
            [get(0, LEAF % "name"), get(0, LEAF % "location"), get(0, "/metadata/versions")], [get(0, "/")],
        ):
            with self.subTest(rows=rows[:3]):
                self.assertEqual(judged(rows), [])

    def test_every_rule_is_tried_here(self):
        with open(__file__, encoding="utf-8") as file:
            text = file.read()
        for name, rule in imds.LINT.items():
            with self.subTest(name=name):
                self.assertIn('("%s"' % name, text)
                self.assertIn(rule.mark, ("documented", "observed", "chosen"))
                self.assertTrue(rule.says)
        self.assertEqual(len(imds.LINT), 15)


class Findings(unittest.TestCase):
    def test_what_they_say(self):
        of = bench()
        for _ in range(3):
            ask(TARGET.replace("2021-02-01", "2025-04-07"), NAMED, of=of)
        findings = of.lint()
        self.assertEqual([sorted(each) for each in findings], [["count", "mark", "rule", "says", "seen", "source"]] * len(findings))
        first = findings[0]
        self.assertEqual((first["rule"], first["count"], first["mark"]), ("no-metadata-header", 3, "documented"))
        self.assertTrue(first["seen"].startswith("1  "), first["seen"])
        self.assertIn("Metadata: true", first["says"])
        self.assertEqual(first["source"], "Azure Instance Metadata Service")

    def test_our_own_client_breaks_none(self):
        with imds.Emulator() as vm:
            for ask_it in (lambda client: client.get("compute/name"), lambda client: client.token("https://vault.azure.net"),
                           lambda client: client.scheduled_events(), lambda client: client.attested("123")):
                ask_it(imds.Client(vm.url))
                self.assertEqual(vm.lint(), [])
                vm.reset()

    def test_times_are_of_the_clock(self):
        self.assertEqual(NOW, 1770462286)
        self.assertIn("old-api-version", judged([get(0, "/metadata/instance?api-version=2023-02-06")]))
        self.assertNotIn("old-api-version", judged([get(0, "/metadata/instance?api-version=2023-02-09")]))


class Exec(unittest.TestCase):
    ASKS = ("import os, urllib.request as r; "
            "r.urlopen(r.Request(os.environ['AZURE_IMDS_ENDPOINT'] + '/metadata/instance?api-version=%s',"
            " headers={'Metadata': 'true', 'User-Agent': 'me/1'})).read(); raise SystemExit(%d)")

    def test_exit_codes(self):
        for options, version, code, expected, said in (
            (["--lint"], "2025-04-07", 0, 0, "no rule is broken, in 1 request"),
            (["--lint"], "2025-04-07", 7, 7, "no rule is broken, in 1 request"),
            (["--lint"], "2017-08-01", 0, 0, "old-api-version (1): "),
            (["--lint-strict"], "2025-04-07", 0, 0, "no rule is broken"),
            (["--lint-strict"], "2017-08-01", 0, 1, "old-api-version (1): "),
            (["--lint-strict"], "2017-08-01", 7, 7, "old-api-version (1): "),
        ):
            with self.subTest(options=options, version=version, code=code):
                done = run("exec", *options + ["--", sys.executable, "-c", self.ASKS % (version, code)])
                self.assertEqual(done[:2], (expected, ""))
                self.assertTrue(done[2].startswith(said), done[2])

    def test_what_is_printed(self):
        errors = run("exec", "--lint", "--", sys.executable, "-c", self.ASKS % ("2017-08-01", 0))[2]
        self.assertRegex(errors, r"\Aold-api-version \(1\): .+ \(observed\)\n    1  \S+  GET /metadata/instance\?api-version="
                                 r"2017-08-01  200  by me/1\n\Z")
