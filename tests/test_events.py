"""Scheduled events: the list at each version, its life on the clock, approvals, and the client."""

import json
import unittest

import imds
from tests.test_client import Patient, Script, reply
from tests.test_service import ask

START = 1615855096  # Tue, 16 Mar 2021 00:38:16 GMT


class Case(unittest.TestCase):
    def setUp(self):
        self.now = START
        self.service = imds.Service(lambda: self.now, profile="scaleset")

    def list(self, version="2020-07-01"):
        response = ask("/metadata/scheduledevents?api-version=" + version, of=self.service)
        self.assertEqual(response.status, 200)
        return json.loads(response.body.decode())

    def post(self, body, version="2020-07-01"):
        return ask("/metadata/scheduledevents?api-version=" + version, verb="POST", body=body, of=self.service)

    def start(self, *event_ids):
        return self.post(json.dumps({"StartRequests": [{"EventId": event_id} for event_id in event_ids]}).encode())


class List(Case):
    def test_recorded_bytes(self):
        self.now = START + 1200
        event_id = self.service.schedule("Preempt", ["myspotvm"])
        response = ask("/metadata/scheduledevents?api-version=2019-08-01", of=self.service)
        self.assertEqual(response.body.decode(), (
            '{"DocumentIncarnation":2,"Events":[{"EventId":"%s","EventStatus":"Scheduled","EventType":"Preempt",'
            '"ResourceType":"VirtualMachine","Resources":["myspotvm"],"NotBefore":"Tue, 16 Mar 2021 00:58:46 GMT",'
            '"Description":"","EventSource":"Platform"}]}' % event_id))
        self.assertRegex(event_id, r"^[0-9A-F]{8}-([0-9A-F]{4}-){3}[0-9A-F]{12}$")
        self.assertEqual(dict(response.headers)["Content-Type"], "application/json; charset=utf-8")

    def test_empty(self):
        self.assertEqual(ask("/metadata/scheduledevents?api-version=2020-07-01", of=self.service).body,
                         b'{"DocumentIncarnation":1,"Events":[]}')

    def test_what_each_version_shows(self):
        for kind in imds.EVENT_TYPES:
            self.service.schedule(kind)
        base = ["EventId", "EventStatus", "EventType", "ResourceType", "Resources", "NotBefore"]
        old = ["Freeze", "Reboot", "Redeploy"]
        for version, fields, kinds in (
            ("2017-03-01", base, old), ("2017-08-01", base, old), ("2017-11-01", base, old + ["Preempt"]),
            ("2019-01-01", base, old + ["Preempt", "Terminate"]),
            ("2019-04-01", base + ["Description"], old + ["Preempt", "Terminate"]),
            ("2019-08-01", base + ["Description", "EventSource"], old + ["Preempt", "Terminate"]),
            ("2020-07-01", base + ["Description", "EventSource", "DurationInSeconds"], old + ["Preempt", "Terminate"]),
        ):
            with self.subTest(version=version):
                events = self.list(version)["Events"]
                self.assertEqual([event["EventType"] for event in events], kinds)
                self.assertEqual(list(events[0]), fields)
        self.assertEqual([event["DurationInSeconds"] for event in events], [5, -1, -1, -1, -1])

    def test_defaults_of_each_type(self):
        for kind, notice in (("Freeze", 900), ("Reboot", 900), ("Redeploy", 600), ("Preempt", 30), ("Terminate", 300)):
            self.service.schedule(kind)
            event = self.list()["Events"][-1]
            self.assertEqual(imds.parse_time(event["NotBefore"]), START + notice)
            self.assertEqual((event["Resources"], event["EventSource"]), (["web_1"], "Platform"))
        self.service.schedule("Reboot", source="User")
        self.assertEqual(self.list()["Events"][-1]["Description"],
                         "Virtual machine is going to be restarted as requested by authorized user.")

    def test_what_schedule_is_told(self):
        self.service.schedule("Freeze", ["a", "b"], 60, 9, "User", "x")
        event = self.list()["Events"][0]
        self.assertEqual((event["Resources"], imds.parse_time(event["NotBefore"]), event["DurationInSeconds"],
                          event["EventSource"], event["Description"]), (["a", "b"], START + 60, 9, "User", "x"))
        self.service.schedule("Freeze", not_before=START + 70)
        self.assertEqual(imds.parse_time(self.list()["Events"][1]["NotBefore"]), START + 70)
        for arguments in (("Restart",), ("Reboot", None, None, None, "Me")):
            with self.assertRaises(ValueError):
                self.service.schedule(*arguments)

    def test_preview_names_single_vms_with_an_underscore(self):
        self.service.schedule("Reboot")
        self.assertEqual(self.list("2017-03-01")["Events"][0]["Resources"], ["web_1"])
        self.service.update({"compute": {"vmScaleSetName": ""}})
        self.assertEqual(self.list("2017-03-01")["Events"][0]["Resources"], ["_web_1"])
        self.assertEqual(self.list("2017-08-01")["Events"][0]["Resources"], ["web_1"])


class Rules(Case):
    def test_rows(self):
        not_found, bad = b'{ "error": "Not found" }', b'{ "error": "Bad request" }'
        ok = {"metadata": "true"}
        for verb, query, headers, status, body in (
            ("GET", "?api-version=2020-07-01", {}, 400, None),
            ("GET", "?api-version=2017-03-01", {}, 200, None),  # the preview did not ask for the header
            ("GET", "", ok, 400, None), ("GET", "?api-version=", ok, 400, None),
            ("GET", "?api-version={latest}", ok, 400, None),
            ("GET", "?api-version=2021-12-13", ok, 404, not_found),  # a version of the instance service
            ("GET", "?api-version=2020-07-01&format=json", ok, 200, None),
            ("GET", "?api-version=2020-07-01&format=text", ok, 400, bad),
            ("PUT", "?api-version=2020-07-01", ok, 405, None),
            ("POST", "?api-version=2021-12-13", ok, 404, not_found),
            ("POST", "?api-version=2020-07-01", {}, 400, None),
            ("POST", "?api-version=2020-07-01", ok, 400, bad),  # no payload
        ):
            with self.subTest(verb=verb, query=query, headers=headers):
                response = ask("/metadata/scheduledevents" + query, headers, verb, of=self.service)
                self.assertEqual(response.status, status)
                if body is not None:
                    self.assertEqual(response.body, body)
        self.assertEqual(dict(ask("/metadata/scheduledevents", verb="PUT").headers)["Allow"], "GET, POST")
        self.assertEqual(ask("/metadata/scheduledevents/x?api-version=2020-07-01").status, 404)

    def test_2018(self):
        one = imds.Service(lambda: START, as_of="2018", rate_limit=0)
        for version, status in (("2017-08-01", 200), ("2017-11-01", 200), ("2019-01-01", 404), ("2020-07-01", 404)):
            self.assertEqual(ask("/metadata/scheduledevents?api-version=" + version, of=one).status, status)

    def test_approval(self):
        one, other = self.service.schedule("Reboot", ["web_1", "web_2"]), self.service.schedule("Freeze")
        before = self.list()["DocumentIncarnation"]
        response = self.start(one)
        self.assertEqual((response.status, response.body), (200, b""))
        after = self.list()
        self.assertEqual(after["DocumentIncarnation"], before + 1)
        self.assertEqual([(event["EventStatus"], event["NotBefore"] == "") for event in after["Events"]],
                         [("Started", True), ("Scheduled", False)])
        self.assertEqual(self.start(one).status, 200)  # twice is fine, and changes nothing
        self.assertEqual(self.list(), after)
        self.assertEqual(self.start(other.lower()).status, 200)

    def test_payloads(self):
        event_id = self.service.schedule("Reboot")
        before = self.list()
        for body in (b"", b"{", b"[]", b"{}", b"5", b"\xff", b'{"StartRequests":5}', b'{"StartRequests":[5]}',
                     b'{"StartRequests":[{}]}', b'{"StartRequests":[{"EventId":5}]}', b"[" * 100000,
                     b'{"StartRequests":[{"EventId":"unknown"}]}',
                     b'{"StartRequests":[{"EventId":"%s"},{"EventId":"unknown"}]}' % event_id.encode()):
            with self.subTest(body=body[:60]):
                self.assertEqual(self.post(body).status, 400)
                self.assertEqual(self.list(), before)
        old = b'{"DocumentIncarnation":"5","StartRequests":[{"EventId":"%s"}]}' % event_id.encode()
        self.assertEqual(self.post(old).status, 200)

    def test_a_throttled_approval_changes_nothing(self):
        self.service = imds.Service(lambda: self.now, rate_limit=1)
        event_id = self.service.schedule("Reboot")
        self.list()
        self.assertEqual(self.start(event_id).status, 429)
        self.now += 2
        self.assertEqual(self.list()["Events"][0]["EventStatus"], "Scheduled")


class Wrong(Case):
    def test_only_the_endpoint_itself_takes_an_approval(self):
        event_id = self.service.schedule("Reboot")
        body = json.dumps({"StartRequests": [{"EventId": event_id}]}).encode()
        for target, status in (("/metadata/scheduledevents/x?api-version=2020-07-01", 404),
                               ("/metadata/scheduledevents?api-version=2020-07-01&format=text", 400)):
            self.assertEqual(ask(target, verb="POST", body=body, of=self.service).status, status)
        for body in (b'{"StartRequests":{}}', b'{"StartRequests":""}'):
            self.assertEqual(self.post(body).status, 400)
        self.assertEqual(self.list()["Events"][0]["EventStatus"], "Scheduled")

    def test_what_can_not_be_scheduled(self):
        for settings in ({"kind": None}, {"kind": ["Reboot"]}, {"source": None}, {"resources": "web_1"},
                         {"resources": [None]}, {"not_before": float("nan")}, {"not_before": float("inf")},
                         {"not_before": 1e18}, {"duration": 1.5}, {"duration": "5"}, {"duration": True},
                         {"duration": -7}, {"description": 5}, {"description": "\ud800"}, {"resources": ["\ud800"]}):
            with self.subTest(settings=settings), self.assertRaises(ValueError):
                self.service.schedule(**dict({"kind": "Reboot"}, **settings))
        self.assertEqual(self.list(), {"DocumentIncarnation": 1, "Events": []})

    def test_times_that_no_clock_shows(self):
        clock = imds.Clock(lambda: START)
        for change in (lambda: clock.advance(float("inf")), lambda: clock.advance(float("nan")),
                       lambda: clock.advance(1e12), lambda: clock.advance(-1e11), lambda: clock.resume(float("nan")),
                       lambda: clock.resume(-1)):
            with self.assertRaises(ValueError):
                change()
        self.assertEqual(clock(), START)


class Life(Case):
    def statuses(self):
        return [event["EventStatus"] for event in self.list()["Events"]]

    def test_from_scheduled_to_gone(self):
        self.service.schedule("Reboot")
        incarnations = []
        for seconds, statuses in ((0, ["Scheduled"]), (899, ["Scheduled"]), (1, ["Started"]), (599, ["Started"]),
                                  (1, [])):
            self.now += seconds
            self.assertEqual(self.statuses(), statuses)
            incarnations.append(self.list()["DocumentIncarnation"])
        self.assertEqual(incarnations, [2, 2, 3, 3, 4])

    def test_what_happened_while_nobody_looked(self):
        self.service.schedule("Reboot")
        self.service.schedule("Freeze")
        self.now += 100000  # both start, the one is gone, the other is gone
        self.assertEqual(self.list(), {"DocumentIncarnation": 6, "Events": []})

    def test_cancel(self):
        event_id = self.service.schedule("Reboot")
        self.service.cancel(event_id)
        self.assertEqual(self.list(), {"DocumentIncarnation": 3, "Events": []})
        with self.assertRaises(ValueError):
            self.service.cancel(event_id)

    def test_scenarios(self):
        for name, kind, source, after_notice, lasts in (
            ("live-migration", "Freeze", "Platform", ["Started"], 300),
            ("user-reboot", "Reboot", "User", ["Started"], 600),
            ("host-agent-maintenance", "Freeze", "Platform", ["Started"], 600),
            ("redeploy", "Redeploy", "Platform", ["Started"], 600),
            ("user-redeploy", "Redeploy", "User", ["Started"], 600),
            ("cancelled-maintenance", "Freeze", "Platform", [], 0),
        ):
            with self.subTest(name=name):
                self.service.play(name)
                event = self.list()["Events"][0]
                self.assertEqual((event["EventType"], event["EventSource"]), (kind, source))
                self.now += 479
                self.assertEqual(self.statuses(), ["Scheduled"])
                self.now += 1
                self.assertEqual(self.statuses(), ["Scheduled"] if after_notice else [])
                self.now += 420
                self.assertEqual(self.statuses(), after_notice)
                self.now += lasts
                self.assertEqual(self.statuses(), [])
        with self.assertRaises(ValueError):
            self.service.play("live migration!")


class Clocks(unittest.TestCase):
    def test_clock(self):
        real = [1000.0]
        clock = imds.Clock(lambda: real[0], 60)
        real[0] += 1
        self.assertEqual(clock(), 1060)
        clock.advance(900)
        self.assertEqual(clock(), 1960)
        clock.freeze()
        real[0] += 5
        self.assertEqual(clock(), 1960)
        clock.advance(1)
        clock.resume(1)
        real[0] += 5
        self.assertEqual(clock(), 1966)
        clock.resume()  # as at first
        real[0] += 5
        self.assertEqual(clock(), 2266)

    def test_parse_time(self):
        for text, seconds in (("Tue, 16 Mar 2021 00:58:46 GMT", 1615856326), ("2021-03-16T00:58:46Z", 1615856326),
                              ("2021-03-16T00:58:46.123Z", 1615856326), ("2021-03-16T02:58:46+02:00", 1615856326),
                              ("20210316T005846Z", 1615856326), ("2021-03-16 00:58", 1615856280), ("", None)):
            self.assertEqual(imds.parse_time(text), seconds)
        with self.assertRaises(ValueError):
            imds.parse_time("soon")


class ClientSide(unittest.TestCase):
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

    def test_watch_yields_each_incarnation_once(self):
        with imds.Emulator() as vm:
            patient = Patient()
            changes = patient.client(vm.url).watch_events(interval=0)
            self.assertEqual(next(changes)["Events"], [])
            vm.schedule("Reboot")
            self.assertEqual(len(next(changes)["Events"]), 1)
            vm.clock.advance(900)
            self.assertEqual(next(changes)["Events"][0]["EventStatus"], "Started")
            self.assertTrue(all(pause >= 0.2 for pause in patient.pauses))  # 5 requests a second at most

    def test_watch_passes_over_what_is_the_same(self):
        same, other = reply(200, b'{"DocumentIncarnation":1,"Events":[]}'), reply(200, b'{"DocumentIncarnation":2,"Events":[]}')
        with Script(same, same, same, other) as server:
            changes = Patient().client(server.url).watch_events()
            self.assertEqual([next(changes)["DocumentIncarnation"] for _ in range(2)], [1, 2])
            self.assertEqual(len(server.requests), 4)

    def test_a_service_of_2018(self):
        with imds.Emulator(as_of="2018") as vm:
            event_id = vm.schedule("Reboot")
            client = imds.Client(vm.url)
            self.assertNotIn("Description", client.scheduled_events()["Events"][0])
            client.approve(event_id)
            self.assertEqual(client.scheduled_events()["Events"][0]["EventStatus"], "Started")

    def test_not_a_list_of_events(self):
        event = b'{"EventId":"x","EventStatus":"Scheduled","EventType":"Reboot","Resources":%s,"NotBefore":"%s"}'
        for body in (b"[]", b"{}", b'{"Events":5}', b'{"Events":[5]}', b"{", b'{"Events":[]}',
                     b'{"DocumentIncarnation":1,"Events":[%s]}' % (event % (b"[]", b"soon")),
                     b'{"DocumentIncarnation":1,"Events":[%s]}' % (event % (b"null", b""))):
            with Script(reply(200, body)) as server, self.assertRaises(imds.NotIMDS):
                imds.scheduled_events(endpoint=server.url)


if __name__ == "__main__":
    unittest.main()
