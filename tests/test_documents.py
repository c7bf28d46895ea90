"""Whole VMs as documents: replayed, redacted, compared; and the commands for events, tokens and proofs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import imds
from tests.test_command_line import FILE, Serve, run
from tests.test_identity import claims


def files(folder, **documents):
    names = []
    for name, document in documents.items():
        names.append(os.path.join(folder, name + ".json"))
        with open(names[-1], "w") as file:
            json.dump(document, file)
    return names


class Whole(unittest.TestCase):
    def test_every_part_is_replayed(self):
        with imds.Emulator(profile="scaleset", load_balancer=True) as vm:
            vm.schedule("Reboot", ["web_1", "web_2"], 1000, 60, "User", "x")
            taken = imds.Client(vm.url).snapshot()
        self.assertEqual(list(taken), ["instance", "scheduledevents", "identity", "loadbalancer", "attested"])
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

    def test_bare_and_whole(self):
        for document in ({"compute": {"name": "x"}}, {"instance": {"compute": {"name": "x"}}}):
            self.assertEqual(imds.Emulator(document).instance["compute"]["name"], "x")
        for document, message in (
            ({"instance": {}, "other": {}}, "not other"), ({"instance": {}, "identity": []}, "identity must be an object"),
            ({"instance": {}, "scheduledevents": {"Events": 5}}, "scheduledevents"),
            ({"instance": {}, "scheduledevents": {"Events": [{"EventType": "Rebot"}]}}, "did you mean Reboot?"),
            ({"instance": []}, "instance must be an object"), (5, "instance must be an object"),
            ({"scheduledevents": {"Events": [5]}}, "scheduledevents.Events.0 must be an object"),
            ({"scheduledevents": {"DocumentIncarnation": True}}, "DocumentIncarnation must be a whole number"),
            ({"scheduledevents": {"Events": [{"EventType": "Reboot", "Resources": None}]}}, "Resources must be a list"),
            ({"scheduledevents": {"Events": [{"EventType": "Reboot", "NotBefore": "soon"}]}}, "'soon' is not a time"),
            ({"scheduledevents": {"Events": [{"EventType": "Reboot"}]}}, "EventId must be there"),
            ({"identity": {"identities": 5}}, "identity.identities must be a list"),
            ({"identity": {"identities": [{}]}}, "identity.type must be a string"),
            ({"identity": {"tenantId": 5}}, "identity.tenantId must be a string"),
            ({"loadbalancer": {"loadbalancer": 5}}, "loadbalancer must be an object"),
            ({"loadbalancer": {"inboundRules": [5]}}, "loadbalancer.inboundRules must be an object"),
            ({"attested": {"foo": 1}}, "attested.encoding must be a string"),
            ({"loadbalancer": {"x": float("nan")}}, "JSON"), ({"identity": {"tenantId": "\ud800"}}, "JSON"),
            ({"compute": {1: "a"}}, "JSON"), ({"compute": {"name": "\ud800"}}, "JSON"),
        ):
            with self.subTest(document=document), self.assertRaises(ValueError) as caught:
                imds.Emulator(document)
            self.assertIn(message, str(caught.exception))

    def test_identities_of_a_document(self):
        mine = {"type": "user", "clientId": "c", "objectId": "o", "resourceId": "/r"}
        with imds.Emulator({"instance": {}, "identity": {"tenantId": "t", "identities": [mine]}}) as vm:
            self.assertEqual(vm.get("/metadata/identity/info"), {"tenantId": "t"})
            body = claims(imds.Client(vm.url).token("https://vault.azure.net"))[1]
        self.assertEqual((body["appid"], body["oid"], body["tid"], body["xms_mirid"]), ("c", "o", "t", "/r"))

    def test_a_service_with_nothing_else(self):
        with imds.Emulator(as_of="2018", cloud="AzureChinaCloud", rate_limit=0) as vm:
            self.assertEqual(list(imds.Client(vm.url).snapshot()), ["instance", "scheduledevents"])


class Redact(unittest.TestCase):
    def setUp(self):
        with imds.Emulator(profile="scaleset", load_balancer=True) as vm:
            vm.update({"compute": {"userData": "c2VjcmV0", "tags": "owner:ann;owner2:ann"}})
            vm.schedule("Reboot", ["web_1", "web_7"])
            self.taken = imds.Client(vm.url).snapshot()
        self.redacted = imds.redact(self.taken)

    def test_nothing_is_left(self):
        text = json.dumps(self.redacted)
        for secret in ("8d10da13", "1da71a3d", "web_", "web0", "/web", "azureuser", "10.2.", "203.0.113.7", "fd00", "0022",
                       "aEAY azureuser", "c2Vj", "owner", "ann", "Department", imds.DEFAULT_TENANT, "signature"):
            self.assertNotIn(secret, text)

    def test_forms_and_identities_are_kept(self):
        compute, old = self.redacted["instance"]["compute"], self.taken["instance"]["compute"]
        self.assertRegex(compute["vmId"], "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
        self.assertIn("/subscriptions/%s/resourceGroups/%s/providers/Microsoft.Compute/virtualMachineScaleSets/%s/"
                      "virtualMachines/1" % (compute["subscriptionId"], compute["resourceGroupName"],
                                             compute["vmScaleSetName"]), compute["resourceId"])
        self.assertEqual(compute["name"], compute["vmScaleSetName"] + "_1")
        event, = self.redacted["scheduledevents"]["Events"]
        self.assertEqual(event["Resources"], [compute["vmScaleSetName"] + "_1", compute["vmScaleSetName"] + "_7"])
        self.assertEqual(event["NotBefore"], self.taken["scheduledevents"]["Events"][0]["NotBefore"])
        self.assertEqual(compute["publicKeys"][0]["path"], "/home/%s/.ssh/authorized_keys"
                         % compute["osProfile"]["adminUsername"])
        for name in ("vmSize", "location", "sku", "version", "storageProfile.imageReference.exactVersion"):
            path = name.replace(".", "/")
            self.assertEqual(imds.resolve(compute, path), imds.resolve(old, path))
        address = self.redacted["instance"]["network"]["interface"][0]["ipv4"]["ipAddress"][0]
        rule = self.redacted["loadbalancer"]["loadbalancer"]["inboundRules"][0]
        self.assertEqual(rule["privateIpAddress"], address["privateIpAddress"])
        self.assertEqual(compute["tags"], "tag1:value1;tag2:value1")

    def test_values(self):
        def redacted(value, path="compute/tagged"):
            part, name = path.split("/")
            return imds.redact({"instance": {part: {name: value}}})["instance"][part][name]

        for path, value, expected in (
            ("compute/resourceId", "20.10.5.6", "198.18.0.1"), ("compute/resourceId", "52.10.3.4 10.0.0.1", "198.18.0.1 10.0.0.1"),
            ("compute/resourceId", "10.2.3.4 10.0.0.1 10.2.3.4", "10.0.0.1 10.0.0.2 10.0.0.1"),
            ("compute/version", "10.2.0.1", "10.2.0.1"), ("compute/resourceId", "4.18.0", "4.18.0"),
            ("compute/resourceId", "2603:1030:8:5:: ::1 fd00::a:1", "2001:db8::1 2001:db8::2 2001:db8::3"),
            ("compute/resourceId", "reason:disk at 12:30:45", "reason:disk at 12:30:45"),
            ("compute/resourceId", "https://x/subscriptions/8d10da13-8125-4ba9-a717-bf7490507b3d/resourceGroups/12345",
             "https://x/subscriptions/00000000-0000-4000-8000-000000000001/resourceGroups/name1"),
            ("compute/resourceId", "/CommunityGalleries/acme-1/Images/secret/Versions/1.2.3",
             "/CommunityGalleries/name1/Images/name2/Versions/1.2.3"),
            ("compute/resourceId", "8D10DA13-8125-4BA9-A717-BF7490507B3D", "00000000-0000-4000-8000-000000000001"),
            ("compute/name", "john_4155550123", "name1"), ("compute/name", "web_12", "name1_12"),
            ("compute/name", "acme_OsDisk_1_0123456789abcdef0123456789abcdef", "name1_OsDisk_1_" + "0" * 31 + "1"),
            ("compute/publicKeys", [{"path": "/Users/bob/.ssh/authorized_keys"}], [{"path": "/Users/name1/.ssh/authorized_keys"}]),
            ("compute/newThing", "group-acme", "value1"),
        ):
            with self.subTest(value=value):
                self.assertEqual(redacted(value, path), expected)
        many = imds.redact({"instance": {"compute": {"tags": "", "resourceId": " ".join(
            "10.1.%d.%d" % divmod(number, 256) for number in range(600))}}})["instance"]["compute"]["resourceId"]
        self.assertEqual(len(set(many.split())), 600)
        self.assertNotIn(".256", many)

    def test_it_is_stable_and_can_be_served(self):
        self.assertEqual(imds.redact(self.taken), self.redacted)
        with imds.Emulator(self.redacted) as vm:
            self.assertEqual(vm.get("compute/vmSize"), "Standard_D2s_v3")


class Commands(unittest.TestCase):
    def test_snapshot_serve_diff(self):
        with tempfile.TemporaryDirectory() as folder, imds.Emulator(profile="scaleset") as vm:
            code, out, _ = run("snapshot", "--endpoint", vm.url)
            self.assertEqual(code, 0)
            self.assertNotIn("access_token", out)
            name, = files(folder, vm=json.loads(out))
            self.assertEqual(run("diff", name, vm.url), (0, "", ""))
            with Serve(name, "--set", "compute.vmSize=x", "--set", "compute.tagsList=[]") as server:
                code, out, _ = run("diff", name, server.url)
                self.assertEqual(code, 1)
                self.assertIn('instance/compute/vmSize: "Standard_D2s_v3" -> "x"\n', out)
                self.assertIn('instance/compute/tagsList/0: {"name":"Department","value":"IT"} -> (absent)\n', out)
            self.assertNotIn("web_1", run("snapshot", "--redact", "--endpoint", vm.url)[1])
            self.assertEqual(run("diff", name, "nowhere")[0], 2)
            self.assertEqual(run("diff", name, "http://127.0.0.1:9")[0], 3)

    def test_diff_of_parts(self):
        with tempfile.TemporaryDirectory() as folder:
            bare, whole, other, truth = files(
                folder, bare={"compute": {"name": "x"}}, whole={"instance": {"compute": {"name": "x"}}, "loadbalancer": {}},
                other={"instance": {"compute": {"name": "x"}}, "identity": {}}, truth={"compute": {"name": True}})
            self.assertEqual(run("diff", bare, whole), (0, "", ""))
            self.assertEqual(run("diff", whole, other), (1, "identity: (absent) -> {}\nloadbalancer: {} -> (absent)\n", ""))
            self.assertEqual(run("diff", bare, truth)[:2], (1, 'instance/compute/name: "x" -> true\n'))

    def test_token(self):
        with imds.Emulator(identities=["user:one", "user:two"]) as vm:
            here = ("https://vault.azure.net", "--endpoint", vm.url)
            code, out, error = run("token", *here)
            self.assertEqual((code, out), (1, ""))
            self.assertIn("Multiple user assigned identities", error)
            one = vm.identities[0]
            code, out, error = run("token", "--client-id", one["clientId"], *here)
            self.assertEqual((code, error, claims(out.strip())[1]["appid"]), (0, "", one["clientId"]))
            code, out, _ = run("token", "--msi-res-id", one["resourceId"], "--json", *here)
            self.assertEqual(json.loads(out)["client_id"], one["clientId"])

    @unittest.skipUnless(shutil.which("openssl"), "no openssl here")
    def test_attested(self):
        with tempfile.TemporaryDirectory() as folder, imds.Emulator() as vm:
            self.assertEqual(json.loads(run("attested", "--endpoint", vm.url)[1])["encoding"], "pkcs7")
            content = json.loads(run("attested", "--content", "--nonce", "123", "--endpoint", vm.url)[1])
            self.assertEqual(content["nonce"], "123")
            ca, der = os.path.join(folder, "ca.pem"), os.path.join(folder, "der")
            for name, command in ((ca, ["test-ca"]), (der, ["attested", "--der", "--endpoint", vm.url])):
                with open(name, "wb") as file:
                    subprocess.check_call([sys.executable, FILE] + command, stdout=file)
            subprocess.check_output(["openssl", "cms", "-verify", "-inform", "DER", "-in", der, "-CAfile", ca],
                                    stderr=subprocess.DEVNULL)

    def test_events(self):
        with Serve("--event", "Reboot", "--event", "Preempt:in=1h,resources=web_1+web_2,source=User,duration=2m",
                   "--scenario", "live-migration") as server:
            here = ("--endpoint", server.url)
            code, out, _ = run("events", *here)
            self.assertEqual((code, out.count("\n")), (0, 3))
            self.assertRegex(out, r"Scheduled  Preempt    in 59:\d\d   [0-9A-F-]{36}  web_1,web_2")
            events = json.loads(run("events", "--json", *here)[1])["Events"]
            self.assertEqual((events[1]["DurationInSeconds"], events[1]["EventSource"]), (120, "User"))
            self.assertEqual(run("events", "--approve", events[0]["EventId"], *here), (0, "", ""))
            self.assertEqual(run("events", "--approve", "unknown", *here)[0], 1)
            self.assertEqual(run("events", "--approve", "all", *here)[0], 0)
            statuses = [event["EventStatus"] for event in json.loads(run("events", "--json", *here)[1])["Events"]]
            self.assertEqual(statuses, ["Started"] * 3)
        with imds.Emulator() as vm:
            self.assertEqual(run("events", "--endpoint", vm.url)[1], "no scheduled events\n")
            self.assertEqual(run("events", "--exec", "true", "--endpoint", vm.url)[0], 2)
            vm.clock.advance(5000)  # NotBefore goes by the service's clock
            vm.schedule("Reboot")
            self.assertRegex(run("events", "--endpoint", vm.url)[1], r"in 1[45]:\d\d ")

    def test_options_that_are_wrong(self):
        for arguments, error in (
            (["--event", "Rebot"], "did you mean Reboot?"), (["--event", "Reboot:on=5"], "key of --event"),
            (["--event", "Reboot:in=soon"], "30s, 15m or 1h"), (["--scenario", "redploy"], "did you mean redeploy?"),
            (["--identity", "me"], "user:NAME"), (["--attested-flaw", "expird"], "did you mean expired?"),
            (["--time-scale", "0"], "more than 0"), (["--time-scale", "x"], "a number, more than 0, not 'x'"),
        ):
            with self.subTest(arguments=arguments):
                code, out, errors = run("serve", *arguments)
                self.assertEqual((code, out), (2, ""))
                self.assertIn(error, errors)
                self.assertNotIn("Traceback", errors)

    def test_serve_options(self):
        with Serve("--identity", "none", "--load-balancer", "--time-scale", "60", "--event", "Reboot:in=60s",
                   "--attested-flaw", "vmId") as server:
            client = imds.Client(server.url)
            self.assertEqual(len(client.get("/metadata/loadbalancer")["loadbalancer"]["inboundRules"]), 1)
            with self.assertRaises(imds.Refused):
                client.token("https://vault.azure.net")
            with self.assertRaises(imds.Refused):
                client.attested()
            until = time.monotonic() + 10
            while time.monotonic() < until and client.scheduled_events()["Events"][0]["EventStatus"] != "Started":
                time.sleep(0.05)
            self.assertEqual(client.scheduled_events()["Events"][0]["EventStatus"], "Started")

    def watch(self, vm, *arguments):
        return subprocess.Popen([sys.executable, "-W", "error", FILE, "events", "--watch", "--interval", "0.2",
                                 "--endpoint", vm.url] + list(arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def end(self, process):
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=10)
        self.assertEqual((process.returncode, errors), (130, b""))
        return out.decode()

    @unittest.skipUnless(os.name == "posix", "signals of POSIX")
    def test_watch(self):
        with imds.Emulator() as vm:
            process = self.watch(vm)
            event_id = vm.schedule("Reboot")
            self.assertRegex(process.stdout.readline().decode(), r"^Scheduled +Reboot +in 1[45]:\d\d +" + event_id)
            vm.clock.advance(900)
            self.assertRegex(process.stdout.readline().decode(), "^Started +Reboot +" + event_id)
            vm.clock.advance(600)
            self.assertRegex(process.stdout.readline().decode(), "^Gone +Reboot +" + event_id)
            self.assertEqual(self.end(process), "")

    @unittest.skipUnless(os.name == "posix", "signals of POSIX")
    def test_watch_and_run(self):
        with tempfile.TemporaryDirectory() as folder, imds.Emulator() as vm:
            marks = os.path.join(folder, "marks")
            good, bad, other = vm.schedule("Reboot"), vm.schedule("Freeze"), vm.schedule("Redeploy", ["other"])
            command = 'echo "$EVENT_ID $EVENT_STATUS $EVENT_RESOURCES" >>%s; test $EVENT_TYPE = Reboot' % marks
            process = self.watch(vm, "--exec", command)
            until = time.monotonic() + 10
            while time.monotonic() < until and imds.scheduled_events(vm.url)["Events"][0]["EventStatus"] != "Started":
                time.sleep(0.1)
            statuses = [event["EventStatus"] for event in imds.scheduled_events(vm.url)["Events"]]
            self.assertEqual(statuses, ["Started", "Scheduled", "Scheduled"])
            process.send_signal(signal.SIGINT)
            errors = process.communicate(timeout=10)[1].decode()
            self.assertRegex(errors, "ended with 1; event %s is not approved" % bad)
            with open(marks) as file:
                lines = sorted(file.read().splitlines())
        self.assertEqual(lines, sorted("%s Scheduled avset2" % event_id for event_id in (good, bad)))
        self.assertNotIn(other, "".join(lines))


if __name__ == "__main__":
    unittest.main()
