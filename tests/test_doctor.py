"""Rooms 9 and 10: doctor, each verdict and each fact in a world that was made for it."""

import json
import os
import tempfile
import time
import unittest
from unittest import mock

import imds
from tests.support import CLOSED, HTML, Script, call, reply, service

AZURE = "7783-7084-3265-9085-8269-3286-77"
ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
"""
HEAD = ROUTES[:ROUTES.index("eth0")]
DIRECT = "eth1\tFEA9FEA9\t00000000\t0005\t0\t0\t100\tFFFFFFFF\t0\t0\t0\n"
LINK = "eth2\t0000FEA9\t00000000\t0001\t0\t0\t100\t0000FFFF\t0\t0\t0\n"
REAL = "http://169.254.169.254"  # only ever asked of a client that asks nobody


class Nobody:
    """A client that asks a Service, or nobody, whatever its endpoint says."""

    def __init__(self, endpoint=REAL, of=None, error=None, change=None):
        self.endpoint, self.of, self.error, self.change = endpoint, of, error, change
        self._timer, self._clock, self.asked = (lambda: 0.0), (lambda: 1770462286.0), []

    def ask_once(self, verb, target, headers):
        self.asked.append((verb, target, dict(headers)))
        if self.error:
            raise self.error
        response = self.of.respond(imds.Request(verb, target, {name.lower(): text for name, text in headers.items()}, b""))
        answer = response.status, {name.lower(): text for name, text in response.headers}, response.body
        return imds.Reply(*self.change(target, headers, answer) if self.change else answer, url=self.endpoint + target)


class Worlds(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = folder.name

    def world(self, **files):
        """Make files below the root."""
        for name, text in files.items():
            path = os.path.join(self.root, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w") as file:
                file.write(text)

    def doctor(self, client, environ=None):
        client = client if not isinstance(client, str) else imds.Client(client, timeout=0.3, deadline=0.5)
        return imds.Doctor(client, root=self.root, environ=environ or {})

    def fact(self, name, client=None, environ=None):
        """Value and meaning of the facts of a name."""
        client = client or Nobody(error=imds.Unreachable("nobody"))
        return [fact[1:] for fact in self.doctor(client, environ).facts if fact[0] == name]


class Verdicts(Worlds):
    def test_who_answers(self):
        for answer, words, code in (
            (reply(401, b"", headers=["WWW-Authenticate: Basic realm=/var/opt/azcmagent/tokens/1.key"]), "an Azure Arc agent", 5),
            (reply(401, b"<html>", "text/html", ['WWW-Authenticate: Basic realm="C:\\ProgramData\\T\\1.key"']),
             "an Azure Arc agent", 5),
            (reply(401, b"", headers=["Server: EC2ws"]), "the metadata service of AWS", 5),
            (reply(404, b"<html>", "text/html", ["Server: EC2ws"]), "the metadata service of AWS", 5),
            (reply(403, b"<html>", "text/html", ["Metadata-Flavor: Google"]), "the metadata service of Google Cloud", 5),
            (reply(200, b"<html>Please log in", "text/html"), "a captive portal, or some other web server", 5),
            (reply(200, b"<html>", HTML + "; charset=utf-8"), "a captive portal, or some other web server", 5),
            (reply(302, b"", "text/plain", ["Location: http://login.test/"]), "something that redirects: a captive portal", 5),
            (reply(302, b"<html>", "text/html", ["Location: http://login.test/"]), "a captive portal", 5),
            (reply(403, b"", "text/plain"), "the guest proxy agent, which lets nobody through", 1),
            (reply(410, b"<?xml?>", "text/xml"), "IMDS of a VM that is being moved", 4),
            (reply(429, b"{}"), "IMDS, but throttling", 4),
            (reply(200, b"{}"), "something else", 5), (reply(500, b""), "something that is failing", 4),
            (reply(503, b"<html>", "text/html"), "something that is failing", 4),
            *((reply(status, b"", "text/plain"), "something that is failing", 4) for status in (408, 501, 507, 520, 599)),
            (reply(404, b"{}"), "perhaps IMDS, which may not be up yet", 4),
            (reply(400, b'{"error":"no"}'), "something else", 5),
        ):
            with self.subTest(words=words, answer=answer), Script(answer) as server:
                doctor = self.doctor(server.url)
                self.assertEqual(doctor.exit_code, code)
                self.assertIn("what answers at %s is %s" % (server.url, words), doctor.verdict)
                self.assertEqual([name for name, _, _ in doctor.facts][-2:], ["time", "without the header"])
                self.assertEqual(len(server.requests), 1)
                self.assertNotIn("\r\nmetadata:", server.requests[0].lower())

    def test_whom_it_could_be_taken_for(self):
        for answer in (reply(403, b"<html>Access denied by squid", "text/html"),
                       reply(401, b"", headers=['WWW-Authenticate: Basic realm="Restricted"'])):
            with Script(answer) as server:
                doctor = self.doctor(server.url)
                self.assertEqual(doctor.exit_code, 5, doctor.verdict)
                for other in ("guest proxy agent", "Arc"):
                    self.assertNotIn(other, doctor.verdict)

    def test_who_does_not_want_the_header(self):
        answer = reply(200, b'{"compute":{"name":"n"},"network":{"interface":[]}}', "application/json; charset=utf-8")
        with Script(answer) as server:
            doctor = self.doctor(server.url)
            self.assertEqual((doctor.verdict, doctor.exit_code), (
                "something like IMDS that does not want the header answers at " + server.url, 0))

    def test_our_own(self):
        with imds.Emulator() as vm:
            doctor = self.doctor(vm.url)
            self.assertEqual((doctor.verdict, doctor.exit_code), ("IMDS answers at " + vm.url, 0))
            self.assertEqual([name for name, _, _ in doctor.facts],
                             ["variables", "chassis tag", "route", "time", "without the header", "with the header", "versions",
                              "clock", "identity", "scheduled events"])
            vm.assert_requested("/metadata/instance", times=2)
            vm.assert_requested("/metadata/instance", times=1, headers={"Metadata": "true"})
            self.assertNotIn("metadata", vm.requests[0].request.headers)

    def test_behind_the_guest_proxy_agent(self):
        def agent(target, headers, answer):
            return answer[0], dict(answer[1], **{"x-ms-azure-host-authorization": "x"}), answer[2]

        doctor = self.doctor(Nobody(of=service(), change=agent))
        self.assertEqual((doctor.verdict, doctor.exit_code), ("IMDS, behind the guest proxy agent answers at " + REAL, 0))

    def test_faults_of_our_own(self):
        for playbook, code, words in (
            ("403 always", 1, "guest proxy agent"), ("410 always", 4, "being moved"), ("429 always", 4, "throttling"),
            ("portal always", 5, "captive portal"), ("redirect always", 5, "captive portal"), ("500 always", 4, "something that is failing"),
            ("ok, 500 always", 4, "IMDS answers at"), ("ok, 403 always", 1, "but not a client"),
            ("ok, portal always", 5, "but not a client"), ("ok, 404 always", 4, "but not a client"),
            ("ok, broken always", 5, "but not a client"), ("ok, redirect always", 5, "but not a client"),
            ("hang always", 3, "silence"), ("ok, hang always", 3, "but not every time"), ("ok, reset always", 3, "but not every time"),
            ("ok, cut always", 3, "but not every time"), ("ok, huge always", 5, "but not every time"),
        ):
            with self.subTest(playbook=playbook), imds.Emulator(faults=[playbook]) as vm:
                doctor = self.doctor(vm.url)
                self.assertEqual(doctor.exit_code, code, doctor.verdict)
                self.assertIn(words, doctor.verdict)

    def test_it_ends_as_get_does(self):
        def dropped(target, headers, answer):  # by something on the way
            response = service().respond(imds.Request("GET", target, {}))
            return response.status, {name.lower(): value for name, value in response.headers}, response.body

        doctor = self.doctor(Nobody(of=service(), change=dropped))
        self.assertEqual(doctor.exit_code, 1, doctor.verdict)
        for settings in ({"as_of": "2018"}, {"versions": ["2017-04-02"]}, {"versions": ["2023-07-01"]}):
            doctor = self.doctor(Nobody(of=service(**settings)))
            self.assertEqual(doctor.exit_code, 0, doctor.verdict)
        for answer, value in ((b'{"apiVersions":["2021-02-01","%s"]}' % (b"x" * 100000), "1, up to 2021-02-01"),
                              (b'{"apiVersions":["2021-02-01","2017-04-02"]}', "2, up to 2021-02-01"),
                              (b'{"apiVersions":[{}]}', "not listed")):
            client = Nobody(of=service(), change=lambda target, headers, said, answer=answer: (
                (200, said[1], answer) if "versions" in target else said))
            self.assertEqual(self.fact("versions", client), [(value, "what a client may ask for")])
        portal = Nobody(of=service(), change=lambda target, headers, said: (
            (200, {"content-type": "text/html"}, b"<html>") if "token" in target else said))
        self.assertEqual(self.fact("identity", portal), [("status 200", "no token for programs on this VM")])
        self.assertEqual(self.fact("route", Nobody("http://[::1]:9", error=imds.Unreachable("nobody"))),
                         [("loopback", "this machine itself")])

    def test_answers_of_any_shape(self):
        for body in (b"", b"null", b"[]", b"5", b'{"apiVersions":5}', b'{"apiVersions":{}}', b'{"apiVersions":[]}', b"\xff",
                     b'{"apiVersions":[{}]}', b'{"Events":5}', b'{"Events":null,"error_description":{}}', b'{"error_description":[]}'):
            for status in (200, 400):
                with self.subTest(body=body, status=status):
                    def change(target, headers, answer, body=body, status=status):
                        return answer if not headers else (status, {}, body)

                    self.assertTrue(self.doctor(Nobody(of=service(), change=change)).verdict)

    def test_no_http(self):
        for answer in (b"SSH-2.0-OpenSSH_9.2\r\n", b"\x00\x01\x02\r\n\r\n"):
            with Script(answer) as server:
                doctor = self.doctor(server.url)
                self.assertEqual((doctor.verdict, doctor.exit_code),
                                 ("what answers at %s is not IMDS: it does not speak HTTP" % server.url, 5))

    def test_http_that_can_not_be_read(self):
        for answer in (reply(200, b"x", headers=["Content-Encoding: gzip"]),
                       b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9999999\r\n\r\n{}"):
            with Script(answer) as server:
                doctor = self.doctor(server.url)
                self.assertEqual((doctor.verdict, doctor.exit_code),
                                 ("what answers at %s is not IMDS: its answer can't be read" % server.url, 5))

    def test_a_token_that_is_slow_or_not_to_be_had_now(self):
        for playbook, value, meaning in (
            ("identity: hang", "silence", "a token may take ten seconds"), ("identity: 410", "status 410", imds.RETRIED[410]),
            ("identity: 429", "status 429", "Temporarily throttled, too many requests"),
            ("identity: 503", "status 503", "try again later"),
        ):
            with self.subTest(playbook=playbook), imds.Emulator(faults=[playbook]) as vm:
                doctor = self.doctor(vm.url)
                self.assertEqual(doctor.exit_code, 0, doctor.verdict)
                self.assertEqual([fact[1:] for fact in doctor.facts if fact[0] == "identity"], [(value, meaning)])
                self.assertTrue(doctor.facts[-1][1].startswith("on, 0 "), doctor.facts[-1])
        for playbook in ("identity: reset", "scheduledevents: reset"):
            with imds.Emulator(faults=[playbook]) as vm:
                self.assertEqual(self.doctor(vm.url).exit_code, 3)

    def test_nobody(self):
        for tag, environ, words in (
            ("", {}, "nobody listens at %s; unless this is an Azure VM, start an emulator with" % CLOSED),
            ("Default string\n", {}, "this does not look like an Azure VM"),
            (AZURE + "\n", {}, "this is an Azure VM: check the route, the firewall and the primary interface"),
            (AZURE + "\n", {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "this is a pod, and AKS can keep pods from the service"),
            ("", {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "use workload identity, or hostNetwork"),
        ):
            with self.subTest(tag=tag, environ=environ):
                self.world(**{"sys/class/dmi/id/chassis_asset_tag": tag})
                doctor = self.doctor(CLOSED, environ)
                self.assertEqual(doctor.exit_code, 3)
                self.assertIn(words, doctor.verdict)
                self.assertEqual(doctor.facts[-1][:2], ("answers", "nothing"))

    def test_who_breaks_off_is_somebody(self):
        with Script(None) as server:
            doctor = self.doctor(server.url)
        self.assertTrue(doctor.verdict.startswith("somebody breaks off at " + server.url), doctor.verdict)

    def test_the_timeout_is_for_all_that_is_asked(self):
        with imds.Emulator(faults=["delay 400ms always"]) as vm:
            begun = time.monotonic()
            code, out, _ = call("doctor", "--endpoint", vm.url, "--timeout", "1")
        self.assertLess(time.monotonic() - begun, 1.9)
        self.assertEqual((code, "but not every time" in out), (3, True), out)

    def test_silence_is_no_refusal(self):
        with Script([b"", b""], pace=9) as server:
            doctor = self.doctor(server.url)
        self.assertEqual(doctor.exit_code, 3)
        self.assertTrue(doctor.verdict.startswith("silence at " + server.url), doctor.verdict)

    def test_variables_that_lead_elsewhere(self):
        with imds.Emulator() as vm:
            for environ, note in (
                ({"AZURE_POD_IDENTITY_AUTHORITY_HOST": "http://10.0.0.9"}, "; but AZURE_POD_IDENTITY_AUTHORITY_HOST leads SDKs "
                                                                           "elsewhere"),
                ({"MSI_ENDPOINT": "http://x"}, "; but MSI_ENDPOINT leads SDKs elsewhere"),
                ({"IDENTITY_ENDPOINT": "http://x", "IMDS_ENDPOINT": "http://x"},
                 "; but IDENTITY_ENDPOINT, IMDS_ENDPOINT leads SDKs elsewhere"),
                ({"AZURE_IMDS_ENDPOINT": "http://x"}, ""), ({"AZURE_POD_IDENTITY_AUTHORITY_HOST": vm.url + "/"}, ""), ({}, ""),
            ):
                with self.subTest(environ=environ):
                    self.assertEqual(self.doctor(vm.url, environ).verdict, "IMDS answers at %s%s" % (vm.url, note))


class Facts(Worlds):
    def test_variables(self):
        self.assertEqual(self.fact("variables"), [("none", "clients go to " + REAL)])
        for name, words in (
            ("AZURE_IMDS_ENDPOINT", "this client"), ("AZURE_POD_IDENTITY_AUTHORITY_HOST", "azure-identity"),
            ("IDENTITY_ENDPOINT", "Azure Arc"), ("IMDS_ENDPOINT", "Azure Arc"), ("MSI_ENDPOINT", "Cloud Shell"),
        ):
            with self.subTest(name=name):
                (value, meaning), = self.fact(name, environ={name: "http://elsewhere"})
                self.assertEqual(value, "http://elsewhere")
                self.assertTrue(meaning.startswith("leads "), meaning)
                self.assertIn(words, meaning)
                self.assertEqual(self.fact("variables", environ={name: ""}), [])

    def test_proxies(self):
        for name, value, others, shown, words in (
            ("http_proxy", "http://proxy:3128", {}, "http://proxy:3128",
             "curl and Python would send requests for 169.254.169.254 there; set NO_PROXY=169.254.169.254"),
            ("HTTP_PROXY", "http://proxy:3128", {}, "http://proxy:3128", "Python, and not curl would send"),
            ("all_proxy", "socks5://proxy", {}, "socks5://proxy", "curl would send"),
            ("ALL_PROXY", "socks5://proxy", {}, "socks5://proxy", "curl would send"),
            ("http_proxy", "http://me:hush@proxy", {}, "http://(masked)@proxy", "would send"),
            ("http_proxy", "http://me:hu/s@h@proxy", {}, "http://(masked)@proxy", "would send"),
            ("http_proxy", "me:hush@proxy:3128", {}, "(masked)@proxy:3128", "would send"),  # curl takes this
            ("http_proxy", "http://proxy", {"no_proxy": "localhost, 169.254.169.254"}, "http://proxy", "passed by"),
            ("http_proxy", "http://proxy", {"NO_PROXY": "*"}, "http://proxy", "passed by"),
            ("http_proxy", "http://proxy", {"NO_PROXY": "169.254.169"}, "http://proxy", "would send"),
            ("http_proxy", "http://proxy", {"NO_PROXY": "9.254.169.254"}, "http://proxy", "would send"),
            ("http_proxy", "http://proxy", {"no_proxy": "other", "NO_PROXY": "169.254.169.254"}, "http://proxy", "curl and Python"),
            ("http_proxy", "http://proxy", {"no_proxy": "", "NO_PROXY": "169.254.169.254"}, "http://proxy", "Python, and not curl"),
            ("http_proxy", "http://proxy", {"no_proxy": "*,foo"}, "http://proxy", "curl and Python"),
            ("http_proxy", "http://proxy", {"no_proxy": "* "}, "http://proxy", "curl and Python"),
            ("http_proxy", "http://proxy", {"no_proxy": ".169.254"}, "http://proxy", "curl would"),
            ("http_proxy", "http://proxy", {"no_proxy": "169.254.0.0/16"}, "http://proxy", "Python, and not curl"),
            ("HTTP_PROXY", "http://proxy", {"http_proxy": ""}, "http://proxy", "not used, for http_proxy comes first"),
        ):
            with self.subTest(name=name, value=value, others=others):
                (seen, meaning), = self.fact(name, environ=dict(others, **{name: value}))
                self.assertEqual(seen, shown)
                self.assertIn(words, meaning)
        for endpoint, listed, words in (
            ("http://Imds.Example:80", "imds.example", "passed by"), ("http://imds.example", "EXAMPLE", "passed by"),
            ("http://[::1]:80", "[::1]", "curl would"), ("http://[::1]:80", "::1", "Python, and not curl"),
        ):
            with self.subTest(endpoint=endpoint, listed=listed):
                nobody = Nobody(error=imds.Unreachable("nobody"), endpoint=endpoint)
                self.assertIn(words, self.fact("http_proxy", nobody, {"http_proxy": "http://p", "no_proxy": listed})[0][1])
        self.assertEqual(self.fact("http_proxy", environ={"http_proxy": ""}), [])
        self.assertEqual(self.fact("https_proxy", environ={"https_proxy": "x"}), [])  # never asked by https

    def test_chassis_tag(self):
        self.assertEqual(self.fact("chassis tag"), [("not readable", "whether this is an Azure VM can't be seen")])
        for text, value, meaning in ((AZURE + "\n", AZURE, "an Azure VM"), ("Default string\n", "Default string", "no Azure VM"),
                                     ("\n", "not readable", "whether this is an Azure VM can't be seen")):
            self.world(**{"sys/class/dmi/id/chassis_asset_tag": text})
            self.assertEqual(self.fact("chassis tag"), [(value, meaning)])

    def test_route(self):
        for table, endpoint, value in (
            (ROUTES, REAL, "over eth0, by a gateway"), (ROUTES + DIRECT, REAL, "over eth1"), (HEAD + DIRECT + ROUTES[len(HEAD):], REAL, "over eth1"),
            (ROUTES + LINK, REAL, "over eth2"), (ROUTES + LINK + DIRECT, REAL, "over eth1"),
            (HEAD, REAL, "none"), ("", REAL, "none"), ("nonsense\nmore nonsense\n\n", REAL, "none"),
            (ROUTES, "http://192.168.1.7:80", "over eth0"), (ROUTES, "http://127.0.0.1:8169", "loopback"),
            (ROUTES, "http://imds.test:80", "not seen"),
        ):
            with self.subTest(table=table, endpoint=endpoint):
                self.world(**{"proc/net/route": table})
                client = Nobody(endpoint, error=imds.Unreachable("nobody"))
                self.assertEqual([row[0] for row in self.fact("route", client)], [value])

    def test_an_address_of_this_machine(self):
        for address, value in (("169.254.169.254", "loopback"), ("169.254.169.253", "none")):
            self.world(**{"proc/net/route": HEAD, "proc/net/fib_trie": "Main:\n     |-- %s\n        /32 host LOCAL\n" % address})
            self.assertEqual([row[0] for row in self.fact("route", Nobody(REAL, error=imds.Unreachable("nobody")))], [value])

    def test_no_route_to_be_seen(self):
        self.assertEqual(self.fact("route", Nobody(REAL, error=imds.Unreachable("nobody"))),
                         [("not seen", "this system does not show it in /proc/net/route")])

    def test_container(self):
        self.assertEqual(self.fact("container"), [])
        self.world(**{"proc/1/cgroup": "0::/init.scope\n"})
        self.assertEqual(self.fact("container"), [])
        for text in ("0::/docker/0123\n", "11:memory:/kubepods/besteffort/pod1\n", "0::/system.slice/containerd.service\n",
                     "0::/machine.slice/libpod-1.scope\n"):
            self.world(**{"proc/1/cgroup": text})
            self.assertEqual([row[0] for row in self.fact("container")], ["cgroup of a container"])
        self.world(**{".dockerenv": ""})
        self.assertEqual([row[0] for row in self.fact("container", environ={"KUBERNETES_SERVICE_HOST": "10.0.0.1"})],
                         ["/.dockerenv, cgroup of a container, KUBERNETES_SERVICE_HOST"])

    def test_of_the_service(self):
        for settings, name, value in (
            ({}, "without the header", "status 400"), ({}, "with the header", "status 200"), ({}, "versions", "35, up to 2025-04-07"),
            ({"versions": ["2019-06-01", "2021-02-01"]}, "versions", "2, up to 2021-02-01"), ({}, "clock", "+0 s"),
            ({"as_of": "2018"}, "versions", "not listed"), ({}, "identity", "a token came (not shown)"),
            ({"identities": []}, "identity", "status 400"),
        ):
            with self.subTest(settings=settings, name=name):
                client = Nobody(of=service(**settings))
                self.assertEqual([row[0] for row in self.fact(name, client)], [value])
        self.assertTrue(self.fact("scheduled events", Nobody(of=service()))[0][0].startswith("on, 0 "))
        self.assertEqual(self.fact("identity", Nobody(of=service(identities=[])))[0][1], "Identity not found")
        self.assertEqual(self.fact("time", Nobody(of=service())), [("0 ms", "for one answer")])

    def test_clock(self):
        for ahead, value, words in ((0, "+0 s", "as the service's"), (59, "+59 s", "as the service's"),
                                    (-3600, "-3600 s", "this clock is wrong"), (86400, "+86400 s", "this clock is wrong")):
            client = Nobody(of=service())
            client._clock = lambda ahead=ahead: 1770462286.0 + ahead
            (seen, meaning), = self.fact("clock", client)
            self.assertEqual(seen, value)
            self.assertIn(words, meaning)

    def test_a_service_that_says_no_time(self):
        def timeless(target, headers, answer):
            return answer[0], {name: text for name, text in answer[1].items() if name != "date"}, answer[2]

        for _, meaning in self.fact("clock", Nobody(of=service(), change=timeless)):
            self.assertNotIn("this clock is wrong", meaning)

    def test_no_token_is_shown(self):
        for environ in ({}, {"http_proxy": "http://me:hush@proxy"}):
            doctor = self.doctor(Nobody(of=service()), environ)
            for secret in ("eyJ", "hush", "access_token"):
                self.assertNotIn(secret, repr(doctor.facts) + doctor.verdict)

        def quoting(target, headers, answer):  # a foreign error that repeats what was asked for
            return (400, {}, b'{"error":"x","error_description":"eyJsecret"}') if "token" in target else answer

        self.assertNotIn("eyJ", repr(self.doctor(Nobody(of=service(), change=quoting)).facts))

    def test_what_it_asks(self):
        client = Nobody(of=service())
        self.doctor(client)
        self.assertEqual({verb for verb, _, _ in client.asked}, {"GET"})
        self.assertEqual([headers for _, _, headers in client.asked], [{}] + [{"Metadata": "true"}] * (len(client.asked) - 1))


class Command(Worlds):
    def test_json(self):
        self.world(**{"sys/class/dmi/id/chassis_asset_tag": AZURE, "proc/net/route": ROUTES})
        with imds.Emulator() as vm:
            code, out, errors = call("doctor", "--json", "--endpoint", vm.url, "--root", self.root)
        said = json.loads(out)
        self.assertEqual((code, errors), (0, ""))
        self.assertEqual((sorted(said), said["exit_code"]), (["exit_code", "facts", "verdict"], 0))
        self.assertEqual(sorted(said["facts"][0]), ["fact", "means", "value"])
        self.assertIn({"fact": "chassis tag", "value": AZURE, "means": "an Azure VM"}, said["facts"])
        self.assertNotIn("eyJ", out)

    def test_the_screen(self):
        with imds.Emulator() as vm:
            with mock.patch.dict(os.environ, {"AZURE_IMDS_ENDPOINT": vm.url, "http_proxy": "http://proxy"}):
                code, out, _ = call("doctor", "--root", self.root)
            lines = out.splitlines()
            self.assertEqual((code, lines[:2]), (0, ["IMDS answers at " + vm.url, ""]))
            self.assertIn("AZURE_IMDS_ENDPOINT  %s: leads this client" % vm.url, lines)
            self.assertRegex(out, r"(?m)^http_proxy +http://proxy: ")
            self.assertLess(len(lines), 25)

    def test_exit_codes(self):
        for playbook, code in (("ok", 0), ("403 always", 1), ("429 always", 4), ("410 always", 4), ("portal always", 5)):
            with self.subTest(playbook=playbook), imds.Emulator(faults=[playbook]) as vm:
                self.assertEqual(call("doctor", "--endpoint", vm.url, "--root", self.root)[0], code)
        self.assertEqual(call("doctor", "--root", self.root)[0], 3)
        self.assertEqual(call("doctor", "--endpoint", "nonsense")[0], 2)
