"""Rooms 9 and 10: the checks of the contract, on the Service, over HTTP, and on servers that are wrong in one thing."""

import contextlib
import io
import json
import re
import time
import unittest
from unittest import mock

import imds
from tests.support import CLOSED, Script, Steps, call, reply, service

PAGE = imds.OUTSIDE_BODY


def asker(of=None, change=None, seen=None):
    """What verify asks: a Service, whose answers ``change(verb, target, headers, (status, headers, body))`` may spoil."""
    of = of or service()

    def ask(verb, target, headers):
        if seen is not None:
            seen.append((verb, target, dict(headers)))
        response = of.respond(imds.Request(verb, target, {name.lower(): value for name, value in headers.items()}, b""))
        body = b"" if verb == "HEAD" else response.body
        answer = response.status, {name.lower(): value for name, value in response.headers}, body
        return change(verb, target, headers, answer) if change else answer

    return ask


def verdicts(ask):
    return {row.name: (verdict, why) for row, verdict, why in imds.verify(ask)}


def differing(change, **settings):
    return {name for name, (verdict, _) in verdicts(asker(service(**settings), change)).items() if verdict != "holds"}


class Checks(unittest.TestCase):
    def test_all_hold_on_the_service(self):
        for settings in ({}, {"profile": "windows"}, {"profile": "scaleset"}, {"load_balancer": True}, {"identities": []},
                         {"identities": ["user:a", "user:b"]}, {"cloud": "AzureChinaCloud"},
                         {"instance": {"compute": {"name": "\u00fc\u4e2d", "tags": "a:b"}, "network": {"interface": [{}]}}}):
            with self.subTest(settings=settings):
                self.assertEqual({name: why for name, (verdict, why) in verdicts(asker(service(**settings))).items()
                                  if verdict != "holds"}, {})

    def test_a_vm_without_interfaces_is_no_other_service(self):  # values are never judged
        found = differing(None, instance={"compute": {"name": "x"}})
        self.assertLessEqual(found, {"index out of range", "doubled slash", "listing of a list"})

    def test_the_table(self):
        rows = imds.contract_checks()
        self.assertGreaterEqual(len(rows), 60)
        self.assertEqual(len({row.name for row in rows}), len(rows))
        self.assertEqual({row.mark for row in rows}, {"documented", "observed", "chosen"})
        for row in rows:
            with self.subTest(name=row.name):
                self.assertIn(row.verb, ("GET", "HEAD"))  # what changes nothing anywhere
                self.assertTrue(row.expected in imds.REFUSALS or row.expected in imds.SHAPES)
        asked = {imds.parse_target(row.target).endpoint for row in rows}
        self.assertLessEqual({name for name, endpoint in imds.ENDPOINTS.items() if "GET" in endpoint.verbs}, asked)
        for version in imds.VERSIONS:
            self.assertTrue(any("api-version=" + version in row.target for row in rows), version)

    def test_only_reads(self):
        seen = []
        verdicts(asker(seen=seen))
        self.assertEqual({verb for verb, _, _ in seen}, {"GET", "HEAD"})

    def test_each_mutation_is_noticed(self):
        def change_status(rule, number):
            return lambda verb, target, headers, answer: (number,) + answer[1:] if rule(verb, target, headers, answer) else answer

        def change_body(old, new, only=""):
            return lambda verb, target, headers, answer: answer[:2] + (re.sub(old, new, answer[2]),) if only in target else answer

        def change_header(name, value, only=""):
            def change(verb, target, headers, answer):
                if only not in target:
                    return answer
                changed = dict(answer[1])
                changed.pop(name, None)
                if value is not None:
                    changed[name] = value
                return answer[0], changed, answer[2]
            return change

        def pretty(verb, target, headers, answer):
            if answer[0] != 200 or not answer[2].startswith((b"{", b"[")):
                return answer
            return answer[:2] + (json.dumps(json.loads(answer[2].decode()), indent=1).encode(),)

        def shuffled(verb, target, headers, answer):
            if answer[0] != 200 or not answer[2].startswith(b"{") or "/instance" not in target:
                return answer
            document = json.loads(answer[2].decode())
            return answer[:2] + (json.dumps(dict(reversed(list(document.items()))), separators=(",", ":")).encode(),)

        def forgiving(verb, target, headers, answer):  # the header does not matter
            return answer if headers else asker()(verb, target, {"Metadata": "true"})

        for name, change, checks in (
            ("400 is 401", change_status(lambda verb, target, headers, answer: answer[0] == 400 and not headers, 401),
             ["no header", "no header, identity", "GET / without the header", "events without the header"]),
            ("no header is needed", forgiving, ["no header", "no header, identity", "no header, versions",
                                                "events without the header"]),
            ("no header is needed but for documents", lambda verb, target, headers, answer: (
                answer if headers or re.search(r"instance\?|token\b", target) else
                asker()(verb, target, {"Metadata": "true"})),
             ["no header, leaf", "no header, attested", "no header, load balancer", "no header, tenant"]),
            ("false is true for identity", lambda verb, target, headers, answer: (
                asker()(verb, target, {"Metadata": "true"}) if "identity" in target and headers else answer),
             ["header that says false, identity"]),
            ("X-Forwarded-For is let pass", lambda verb, target, headers, answer: asker()(
                verb, target, {name: value for name, value in headers.items() if name == "Metadata"}), ["X-Forwarded-For"]),
            ("given twice is let pass", lambda verb, target, headers, answer: asker()(
                verb, re.sub("&api-version=.*", "", target), headers), ["parameter given twice"]),
            ("any version is rounded", lambda verb, target, headers, answer: asker()(
                verb, re.sub("2019-05-05|2999-01-01", "2019-04-30", target), headers),
             ["version between two", "version after the last"]),
            ("events at one version", change_status(lambda verb, target, headers, answer: (
                "events" in target and "2020-07-01" not in target), 404), ["events at 2017-08-01", "events at 2019-08-01"]),
            ("tokens at one version", change_status(lambda verb, target, headers, answer: (
                "token" in target and "2018-02-01" not in target), 404), ["token at a later version"]),
            ("an attested document of the first version", lambda verb, target, headers, answer: asker()(
                verb, re.sub("attested/document.api-version=20[0-9-]+", "attested/document?api-version=2018-10-01", target), headers),
             ["attested document", "attested document at 2019-04-30"]),
            ("words of the header refused", change_body(b"Required metadata header", b"Required Metadata header"),
             ["no header", "no header, before the version"]),
            ("blanks in errors", change_body(b'{ "error": "Not found" }', b'{"error":"Not found"}'),
             ["unknown field", "other case"]),
            ("404 has no body", change_body(b'(?s){ "error": "Not found" }', b""), ["unknown field"]),
            ("newest-versions", change_body(b'"newest-versions"', b'"newest"'), ["no version", "version before the first"]),
            ("versions are a list", change_body(b'\\{"apiVersions":(.*)\\}', b"\\1"), ["versions"]),
            ("a number in the document", change_body(b'"platformFaultDomain":"(\\d)"', b'"platformFaultDomain":\\1', "instance?"),
             ["document at 2021-02-01", "document at 2025-04-07"]),
            ("a name is missing", change_body(b'"vmId":"[^"]*",', b"", "instance?"), ["document at 2017-04-02"]),
            ("a later field too early", change_body(b'"zone":"[^"]*"', b'"zonal":""', "instance?"), ["document at 2017-12-01"]),
            ("not in order", shuffled, ["document at 2021-02-01"]),
            ("pretty-printed", pretty, ["a list is a bare list", "network is not wrapped"]),
            ("compute is wrapped", change_body(b"^(.*)$", b'{"compute":\\1}', "instance/compute?api-version=2025-04-07"),
             ["compute is not wrapped"]),
            ("leaf in quotes", change_body(b"^([0-9a-f-]{36})$", b'"\\1"\n', "format=text"), ["leaf as text"]),
            ("leaf as JSON type", change_header("content-type", "application/json", "format=text"),
             ["leaf as text", "listing of the root"]),
            ("listing without slashes", change_body(b"/", b"", "format=text"), ["listing of a list"]),
            ("listing with a newline", change_body(b"\\Z", b"\n", "format=text"), ["listing of compute"]),
            ("no Server", change_header("server", None), ["header Server"]),
            ("no x-ms-request-id", change_header("x-ms-request-id", None), ["header x-ms-request-id"]),
            ("content type without a charset", change_header("content-type", "application/json"), ["header Content-Type"]),
            ("a date of its own", change_header("date", "2026-02-07T00:00:00Z"), ["header Date"]),
            ("another length", change_header("content-length", "7"), ["header Content-Length"]),
            ("expires_in is a number", change_body(b'"expires_in":"(\\d+)"', b'"expires_in":\\1'), ["token"]),
            ("token without not_before", change_body(b'"not_before":"\\d+",', b""), ["token"]),
            ("identity says it otherwise", change_body(b"Identity not found", b"No identity"), ["token of nobody"]),
            ("no DocumentIncarnation", change_body(b'"DocumentIncarnation":\\d+,', b""), ["events at 2020-07-01"]),
            ("attested is JSON itself", change_body(b'"encoding":"pkcs7",', b"", "attested"), ["attested document"]),
            ("load balancer", change_body(b"No load balancer", b"no load balancer"), ["load balancer"]),
            ("HEAD is GET", lambda verb, target, headers, answer: (200, {}, b"") if verb == "HEAD" else answer, ["HEAD"]),
            ("no attested document", change_status(lambda verb, target, headers, answer: "/attested" in target, 404),
             ["attested document"]),
            ("refusals as text", lambda verb, target, headers, answer: (
                answer[0], dict(answer[1], **{"content-type": "text/plain" if answer[0] > 200 else answer[1]["content-type"]}),
                answer[2]), ["no header", "unknown field", "HEAD"]),
            ("JSON as text", lambda verb, target, headers, answer: (
                answer[0], dict(answer[1], **{"content-type": "text/plain"}), answer[2]),
             ["document at 2021-02-01", "compute is not wrapped", "versions", "tenant", "token", "attested document",
              "events at 2020-07-01", "a list is a bare list"]),
            ("an incarnation as text", change_body(b'"DocumentIncarnation":(\\d+)', b'"DocumentIncarnation":"\\1"'),
             ["events at 2020-07-01"]),
            ("no list of events", change_body(b'"Events":\\[\\]', b'"Events":5'), ["events at 2020-07-01"]),
            ("containers without slashes", change_body(b"(compute|network)/", b"\\1", "text"), ["listing of the root"]),
            ("half a listing", change_body(b"\\nnetwork/", b"", "text"), ["listing of the root"]),
            ("few fields listed", change_body(b"(?s)\\A.*(location\\nname).*", b"\\1", "compute?"), ["listing of compute"]),
            ("a list of numbers", change_body(b"(?s)\\A.*\\Z", b"[1,2]", "network/interface?"), ["a list is a bare list"]),
            ("another network", change_body(b"(?s)\\A.*\\Z", b'{"x":5}', "instance/network?"), ["network is not wrapped"]),
            ("another encoding", change_body(b"pkcs7", b"xyz"), ["attested document"]),
            ("a signature that is none", change_body(b'"signature":"[^"]*"', b'"signature":"-"'), ["attested document"]),
            ("a token of nothing", change_body(b'"access_token":"[^"]*"', b'"access_token":""'), ["token"]),
            ("another type of token", change_body(b"Bearer", b"pop"), ["token"]),
            ("a tenant of nothing", change_body(b'"tenantId":"[^"]*"', b'"tenantId":""'), ["tenant"]),
            ("oldest first", change_body(b'"2025-04-07","2024-07-17"', b'"2024-07-17","2025-04-07"'), ["no version"]),
            ("newest first", change_body(b'"2017-03-01","2017-04-02"', b'"2017-04-02","2017-03-01"'), ["versions"]),
            ("a version twice", change_body(b'"2017-03-01","2017-04-02"', b'"2017-03-01","2017-03-01","2017-04-02"'), ["versions"]),
            ("X-Forwarded-For is not minded but for documents", lambda verb, target, headers, answer: (
                answer if "instance" in target or "X-Forwarded-For" not in headers else
                asker()(verb, target, {"Metadata": "true"})),
             ["X-Forwarded-For, token", "X-Forwarded-For, attested", "X-Forwarded-For, events"]),
            ("compute of now at each version", lambda verb, target, headers, answer: asker()(
                verb, re.sub("(/compute.)api-version=2017-04-02$", r"\1api-version=2025-04-07", target), headers),
             ["compute at the oldest version"]),
            ("no dates", change_body(b'"2017-03-01","2017-04-02"', b'5,"2017-04-02"'), ["versions"]),
            ("a leaf of HTML", change_body(b"(?s)\\A.*", b"<h1>hi</h1>", "vmId"), ["leaf as text", "slash at the end of a leaf"]),
            ("an address in quotes", change_body(b"(?s)\\A(.*)\\Z", b'"\\1"', "macAddress"), ["doubled slash"]),
            ("a token refused for another reason", lambda verb, target, headers, answer: (
                (400, answer[1], imds.REFUSALS["no-resource"].body.encode()) if "oauth2/token" in target else answer), ["token"]),
            ("a signature of nothing", change_body(b'"signature":"[^"]*"', b'"signature":"===="'), ["attested document"]),
            ("half a signature", change_body(b'("signature":"[^"]{400})[^"]*"', b'\\1"'), ["attested document"]),
            ("versions want a version", lambda verb, target, headers, answer: asker()(
                verb, target.replace("/versions", "/instance"), headers), ["versions"]),
            ("one document for all", lambda verb, target, headers, answer: asker()(
                verb, re.sub("=20[0-9-]+$", "=2025-04-07", target), headers),
             ["document at 2017-04-02", "document at 2021-12-13", "document at 2024-03-15"][:2]),
            ("a leaf refused as if without a version", lambda verb, target, headers, answer: asker()(
                verb, target.replace("?api-version", "?version"), headers) if "vmId" in target else answer,
             ["leaf without a format", "leaf as JSON"]),
            ("a later preview field", change_body(b'"compute":{', b'"compute":{"zone":"",', "=2017-03-01"), ["document at 2017-03-01"]),
            ("503 for all", lambda verb, target, headers, answer: (503, {}, b""), [row.name for row in imds.contract_checks()]),
        ):
            with self.subTest(name=name):
                found = verdicts(asker(change=change))
                for check in checks:
                    self.assertEqual(found[check][0], "differs", check)
                    self.assertTrue(found[check][1])
                if name != "503 for all":
                    self.assertIn("holds", {verdict for verdict, _ in found.values()})

    def test_the_lists_of_a_load_balancer(self):
        for old, new in ((b'"frontendPort":443', b'"frontendPort":"443"'), (b"backendPort", b"port"),
                         (b'"protocol":"tcp"', b'"protocol":6'), (b'"frontendPort":443', b'"frontendPort":true'), (b"inboundRules", b"in"), (b'"outboundRules":', b'"outboundRules":5,"x":'), (b'{"loadbalancer":', b'{"x":')):
            found = verdicts(asker(service(load_balancer=True), lambda verb, target, headers, answer, old=old, new=new: (
                answer[:2] + (answer[2].replace(old, new),))))
            self.assertEqual(found["load balancer"][0], "differs", new)
        for change in (  # both are documented
            lambda body: body.replace(b'"outboundRules"', b'"tunnelInterfaces":[{"gatewayPort":1}],"outboundRules"'),
            lambda body: b'{ "error": "/metadata/loadbalancer is not currently available" }',
        ):
            found = verdicts(asker(service(load_balancer=True), lambda verb, target, headers, answer, change=change: (
                (200 if b"Rules" in change(answer[2]) else 404,) + answer[1:2] + (change(answer[2]),)
                if "loadbalancer" in target else answer)))
            self.assertEqual(found["load balancer"], ("holds", ""))

    def test_huge_texts(self):
        for body in (b"a\n" * 2000000, b"1/\n" * 1300000):
            found = verdicts(asker(change=lambda verb, target, headers, answer, body=body: (
                answer[:2] + (body,) if target.endswith("format=text") else answer)))
            self.assertIn("too many", found["listing of the root"][1])

    def test_values_are_never_judged(self):
        for name, change in (
            ("another name", lambda text: text.replace(b"avset2", b"x")), ("another place", lambda text: text.replace(b"westus", b"")),
            ("a field that no table knows", lambda text: text.replace(b'"compute":{', b'"compute":{"aaa":"new",')),
        ):
            with self.subTest(name=name):
                def changed(verb, target, headers, answer, change=change):
                    body = change(answer[2]) if "document" not in target and answer[0] == 200 else answer[2]
                    return answer[0], dict(answer[1], **{"content-length": str(len(body))}), body

                self.assertEqual(differing(changed), set())

    def test_what_vms_show_in_two_ways(self):
        for name, change in (
            ("listing of compute", lambda verb, target, headers, answer: (
                answer[:2] + (answer[2].replace(b"physicalZone\n", b""),))),
            ("token", lambda verb, target, headers, answer: (
                (400, answer[1], b'{"error":"invalid_resource","error_description":"AADSTS500011: no such resource"}')
                if "management" in target else answer)),
            *(("token", lambda verb, target, headers, answer, error=error: (
                (400, answer[1], json.dumps({"error": error, "error_description": "no"}).encode())
                if "management" in target else answer)) for error in ("unauthorized_client", "access_denied")),
            ("document at 2024-03-15", lambda verb, target, headers, answer: (
                answer[:2] + (answer[2].replace(b'"isVmInStandbyPool":"",', b""),))),
            ("document at 2023-07-01", lambda verb, target, headers, answer: (
                answer[:2] + (answer[2].replace(b'"licenseType"', b'"isVmInStandbyPool":"","licenseType"'),))),
            ("header Content-Length", lambda verb, target, headers, answer: (
                answer[0], dict({name: answer[1][name] for name in answer[1] if name != "content-length"},
                                **{"transfer-encoding": "chunked"}), answer[2])),
            ("events, version of another", lambda verb, target, headers, answer: (
                (400 if "2021-12-13" in target else answer[0],) + answer[1:])),
        ):
            with self.subTest(name=name):
                self.assertEqual(verdicts(asker(change=change))[name], ("holds", ""))
        early = verdicts(asker(service(as_of="2018")))
        for name in ("attested document", "load balancer", "events at 2020-07-01"):
            self.assertEqual(early[name], ("can't tell", "this service does not offer it yet"), name)

    def test_a_failure_that_passes(self):
        seen = []

        def failing(verb, target, headers, answer):
            seen.append((verb, target, headers))
            return (503, {}, b"") if seen.count(seen[-1]) % 2 else answer

        self.assertEqual({verdict for verdict, _ in verdicts(asker(change=failing)).values()}, {"holds"})

    def test_no_body_of_the_identity_service_is_in_a_verdict(self):
        for body in (b'{"token":"hush"}', b'{"AccessKeyId":"x","Token":"hush"}', b"ya29.hush"):
            found = verdicts(lambda verb, target, headers, body=body: (
                400, {"content-type": "application/json"}, body if "identity" in target else b"{}"))
            self.assertFalse([why for _, why in found.values() if "hush" in why])

    def test_why_it_differs(self):
        for name, check, body, why in (
            ("no token is shown", "token", lambda body: body.replace(b":", b": ", 1), "no minified JSON"),
            ("no JSON", "compute is not wrapped", lambda body: body[:-1], "not JSON"),
            ("no JSON", "events at 2020-07-01", lambda body: body[:-1], "not a JSON object"),
            ("what is missing comes first", "document at 2021-02-01", lambda body: body.replace(b'"vmId"', b' "id"'),
             "compute lacks vmId"),
            ("as JSON has it", "document at 2021-02-01", lambda body: body.replace(b'"Linux"', b"false"),
             "compute.osType is false, not a string"),
            ("a page", "document at 2021-02-01", None, "type 'text/html', not application/json"),
            ("no token", "no header", lambda body: b'{"access_token":"hush"}', "body that may hold a token, not "
             """'{ "error": "Bad request: . Required metadata header not specified" }'"""),
            ("since when", "document at 2017-12-01", lambda body: body.replace(b'"compute":{', b'"compute":{"licenseType":"",'),
             "it has compute/licenseType, which is there since 2020-09-01"),
            ("where it differs", "HEAD", lambda body: b"", None),
            ("where it differs", "outside /metadata", lambda body: body[:-3],
             "body %r, not %r" % ("..." + PAGE[-103:-3], "..." + PAGE[-103:])),
        ):
            with self.subTest(name=name, check=check):
                page = 200, {"content-type": "text/html"}, b"<html>"
                found = verdicts(asker(change=lambda verb, target, headers, answer, body=body: (  # noqa: B023
                    answer[:2] + (body(answer[2]),) if body else page)))  # noqa: B023
                self.assertEqual(found[check], ("differs", why) if why else ("holds", ""))

    def test_no_token_is_in_a_verdict(self):
        for body in (b'{"access_token":"hush.hush"}', b'["eyJhushhushhush"]', b'"eyJhushhushhush"', b'eyJhushhushhush', b'{"Access_Token":"hush"}',
                     b'{"apiVersions":"eyJhushhushhush"}', b'{"DocumentIncarnation":"eyJhushhushhush.hush","Events":[]}'):
            for content_type in ("text/plain", "application/json; charset=utf-8"):
                for status in (200, 400, 404):
                    found = verdicts(lambda verb, target, headers, answer=(status, {"content-type": content_type}, body): answer)
                    self.assertFalse([why for _, why in found.values() if "hush" in why])

    def test_what_can_not_be_told(self):
        def absent(verb, target, headers, answer):
            raise imds.Unreachable("gone")

        def late(verb, target, headers):
            if len(seen) > 5:
                raise imds.Unreachable("gone")
            return asker(seen=seen)(verb, target, headers)

        seen = []
        with self.assertRaises(imds.Unreachable):
            verdicts(asker(change=absent))
        found = verdicts(late)
        self.assertEqual(found["header Date"], ("can't tell", "gone"))
        self.assertEqual(found["no header"][0], "holds")
        throttled = verdicts(asker(change=lambda verb, target, headers, answer: (429, {}, b"") if "identity" in target else answer))
        self.assertEqual((throttled["token"], throttled["no header"][0]), (("can't tell", "throttled"), "holds"))
        old = verdicts(asker(service(versions=["2020-06-01", "2021-02-01"])))
        self.assertEqual(old["document at 2019-06-01"], ("can't tell", "this service does not offer 2019-06-01"))
        self.assertEqual(old["document at 2021-02-01"], ("holds", ""))

    def test_other_versions_are_no_difference(self):
        for settings, most in (({"versions": ["2021-02-01"]}, 50), ({"versions": ["2018-10-01", "2020-09-01"]}, 45),
                               ({"versions": ["2018-04-02"]}, 55), ({"versions": ["2017-04-02"]}, 70),
                               ({"versions": ["2017-03-01"]}, 75)):
            with self.subTest(settings=settings):
                found = verdicts(asker(service(**settings)))
                self.assertEqual([name for name, (verdict, _) in found.items() if verdict == "differs"], [])
                self.assertLess(len([name for name, (verdict, _) in found.items() if verdict == "can't tell"]), most)
        self.assertEqual(verdicts(asker(service(versions=["2021-02-01"]), lambda verb, target, headers, answer: (
            answer[:2] + (re.sub(b'Bearer', b'pop', answer[2]),))))["token"][0], "differs")  # asked for at 2021-02-01
        unlisted = verdicts(asker(service(versions=["2021-02-01"]), lambda verb, target, headers, answer: (
            (404, {}, b"") if target.startswith("/metadata/versions") else answer)))
        self.assertEqual(unlisted["document at 2021-02-01"], ("holds", ""))
        self.assertEqual(unlisted["document at 2019-06-01"], ("can't tell", "this service refuses 2019-06-01"))
        self.assertEqual(unlisted["versions"][0], "differs")

    def test_each_event_is_looked_at(self):
        of = service({"instance": {}, "scheduledevents": {"DocumentIncarnation": 1, "Events": [
            {"EventId": "a", "EventType": "Reboot", "Resources": ["web_1"], "NotBefore": "2026-02-07T12:00:00Z"}]}})
        self.assertEqual(verdicts(asker(of))["events at 2020-07-01"], ("holds", ""))
        for old, new in ((b'"EventSource":"[^"]*",', b""), (b'"DurationInSeconds":[-0-9]+', b'"DurationInSeconds":"x"'),
                         (b'"EventStatus":"Scheduled"', b'"EventStatus":"Completed"'),
                         (b'"ResourceType":"VirtualMachine"', b'"ResourceType":"Toaster"'),
                         (br'"Resources":\[[^]]*\]', b'"Resources":"a"'), (b'"NotBefore":"[^"]*"', b'"NotBefore":"soon"'),
                         (b'"NotBefore":"[^"]*"', b'"NotBefore":"2026-02-07T12:00:00Z"'),  # as Azure's own mock has it
                         (b'"EventStatus":"Scheduled"', b'"EventStatus":"Started"')):
            def change(verb, target, headers, answer, old=old, new=new):
                return answer[:2] + (re.sub(old, new, answer[2]),) if "scheduledevents" in target else answer

            with self.subTest(old=old):
                verdict, why = verdicts(asker(of, change))["events at 2020-07-01"]
                self.assertEqual((verdict, bool(why)), ("differs", True))

    def test_something_else_than_http_differs(self):
        def huge(verb, target, headers, answer):
            if "format=text" in target:
                raise imds.NotIMDS("more than 4194304 bytes")
            return answer

        self.assertEqual(verdicts(asker(change=huge))["leaf as text"], ("differs", "more than 4194304 bytes"))

    def test_lists_of_versions_that_lie(self):
        for body in (b"", b"[]", b"5", b'{"apiVersions":5}', b'{"apiVersions":["x",5,null]}', b'{"apiVersions":{}}', b"\xff"):
            with self.subTest(body=body):
                found = verdicts(asker(change=lambda verb, target, headers, answer, body=body: (
                    answer[:2] + (body,) if target == "/metadata/versions" else answer)))
                self.assertEqual(found["no header"][0], "holds")

    def test_bodies_of_any_kind(self):  # no check falls over what it gets
        for body in (b"", b"null", b"[]", b"{}", b'"x"', b"5", b"\xff\xfe", b"[" * 100000, b'{"compute":5}', b'{"compute":{},"network":[]}',
                     b'{"apiVersions":[{}]}', b"<html>", b'{"loadbalancer":5}', b'{"Events":5,"DocumentIncarnation":{}}'):
            for status in (200, 400, 404, 302):
                with self.subTest(body=body[:20], status=status):
                    found = verdicts(lambda verb, target, headers, answer=(status, {}, body): answer)
                    self.assertEqual(len(found), len(imds.contract_checks()))


class Fast:
    """Time for verify: its pauses pass at once, and are added up."""

    def __init__(self):
        self.ahead, self.monotonic = 0.0, time.monotonic

    def sleep(self, seconds):
        self.ahead += seconds

    def now(self):
        return self.monotonic() + self.ahead


def verify(*arguments):
    """The command, in this process and without its pauses: exit code, output, errors, the time."""
    fast, out, errors = Fast(), io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    with mock.patch("time.sleep", fast.sleep), mock.patch("time.monotonic", fast.now), contextlib.redirect_stdout(out):
        with contextlib.redirect_stderr(errors):
            code = imds.main(["verify"] + list(arguments))
    return code, out.buffer.getvalue().decode(), errors.getvalue(), fast


class Command(unittest.TestCase):
    def test_our_own_holds(self):
        with imds.Emulator() as vm:
            code, out, errors, fast = verify(vm.url, "--json")
            said = json.loads(out)
            self.assertEqual((code, errors), (0, ""))
            self.assertEqual([each for each in said["checks"] if each["verdict"] != "holds"], [])
            self.assertEqual(len(said["checks"]), len(imds.contract_checks()))
            self.assertEqual(sorted(said["checks"][0]), ["check", "mark", "request", "verdict", "why"])
            self.assertEqual(said["url"], vm.url)
            self.assertEqual(sum(said["summary"][mark]["holds"] for mark in ("documented", "observed", "chosen")),
                             len(said["checks"]))
            self.assertGreaterEqual(len(vm.requests), len(said["checks"]))
            self.assertGreaterEqual(fast.ahead, 0.2 * (len(vm.requests) - 1))

    def test_four_a_second_at_most(self):
        times = []
        with imds.Emulator() as vm:
            fast = Fast()
            ask_once = imds.Client.ask_once

            def ask(client, *arguments):
                times.append(fast.now())
                return ask_once(client, *arguments)

            with mock.patch("time.sleep", fast.sleep), mock.patch("time.monotonic", fast.now), mock.patch.object(
                    imds.Client, "ask_once", ask), contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())):
                imds.main(["verify", vm.url])
        pauses = [later - earlier for earlier, later in zip(times, times[1:])]
        self.assertGreaterEqual(min(pauses), 0.249)
        self.assertGreater(len(times), 60)

    def test_lines(self):
        with imds.Emulator() as vm:
            code, out, _, _ = verify(vm.url)
        lines = out.splitlines()
        self.assertEqual(lines[0], "holds       observed    no header")
        self.assertEqual([re.sub(r"\d+", "N", line) for line in lines[-3:]], [
            "documented  N hold, N differ, N can't be told", "observed    N hold, N differ, N can't be told",
            "chosen      N hold, N differ, N can't be told"])
        self.assertEqual(len(lines), len(imds.contract_checks()) + 3)
        self.assertEqual(code, 0)

    def test_exit_codes(self):
        for faults, arguments, code in (
            (["instance/compute/nonsense: 503 always"], [], 1), (["HEAD: 404 always"], [], 1),
            (["identity/getplatformmetadata: 503 always"], [], 0), (["identity/getplatformmetadata: 503 always"], ["--strict"], 1), ([], ["--strict"], 0),
            (["portal always"], [], 5), (["404 always"], [], 5), (["redirect always"], [], 5),
            (["410 always"], [], 4), (["403 always"], [], 1), (["GET instance: 410 always"], [], 4), (["503 always"], [], 4), (["instance: reset", "versions: 404 always"], [], 1),
            (["versions: reset", "instance: reset"], [], 3), (["loadbalancer: 410 always"], [], 0), (["429 always"], [], 4), (["versions: reset always"], [], 0),
            (["ok, reset x65, 500 always"], [], 4), (["ok, reset x90, 500 always"], [], 3),
        ):
            with self.subTest(faults=faults, arguments=arguments), imds.Emulator(faults=faults) as vm:
                self.assertEqual(verify(vm.url, *arguments)[0], code)

    def test_what_was_asked_is_said(self):
        with imds.Emulator() as vm:
            said = {row["check"]: row["request"] for row in json.loads(verify(vm.url, "--json")[1])["checks"]}
        self.assertEqual(said["X-Forwarded-For"], "GET /metadata/instance?api-version=2025-04-07; Metadata: true; "
                                                  "X-Forwarded-For: 10.0.0.1")
        self.assertEqual((said["no header"], said["HEAD"]), ("GET /metadata/instance?api-version=2025-04-07",
                                                             "HEAD /metadata/instance/compute"))
        self.assertFalse([each for each in said.values() if re.search("VERSION|OLDEST|TOKENS", each)])

    def test_a_proxy_that_forwards(self):
        with imds.Emulator() as vm, mock.patch.dict(imds.SENT, {name: dict(sent, **{"X-Forwarded-For": "10.1.2.3"})
                                                                for name, sent in imds.SENT.items()}):
            code, _, errors, _ = verify(vm.url)
        self.assertEqual(code, 1)
        self.assertIn("does a proxy on the way add X-Forwarded-For", errors)

    def test_a_mock_of_one_part(self):
        network = imds.format_json(imds.view(imds.make_vm(), "2025-04-07")["network"]).encode()
        compute = imds.format_json(imds.view(imds.make_vm(), "2025-04-07")["compute"]).encode()
        for name, body in (("network", network), ("compute", compute)):
            path = "GET /metadata/instance/%s?" % name
            with Script(lambda request, path=path, body=body: reply(200, body) if path in request else reply(404, b"")) as part:
                self.assertEqual(verify(part.url)[0], 1)

    def test_few_versions_and_one_failure(self):
        with imds.Emulator(versions=["2017-04-02"], faults=["HEAD: 429 always"]) as vm:
            self.assertEqual(verify(vm.url)[0], 0)

    def test_one_that_fails_where_it_should_refuse(self):
        with imds.Emulator() as vm:
            respond = vm._bench.service.respond
            vm._bench.service.respond = lambda request: (
                respond(request) if respond(request).status < 400 else vm._bench.service.refuse("failed"))
            self.assertEqual(verify(vm.url)[0], 1)

    def test_one_of_which_most_is_lost_but_not_the_last(self):
        with imds.Emulator(faults=["instance: reset x80"]) as vm:
            self.assertEqual(verify(vm.url)[0], 3)

    def test_who_goes_away_in_the_second_half(self):
        vm, judge, count = imds.Emulator().start(), imds.judge, []

        def judged(row, answer):
            count.append(row)
            if len(count) == 60:
                vm.stop()
            return judge(row, answer)

        with mock.patch.object(imds, "judge", judged):
            self.assertEqual(verify(vm.url, "--timeout", "1")[0], 3)

    def test_one_that_is_lost_is_no_server_that_is_gone(self):
        ask_once = imds.Client.ask_once
        for lost in (50, len(imds.contract_checks()) + 1):
            count = []

            def ask(client, *arguments, lost=lost, count=count):
                count.append(arguments)
                if len(count) == lost:
                    raise imds.Unreachable("lost")
                return ask_once(client, *arguments)

            with imds.Emulator() as vm, mock.patch.object(imds.Client, "ask_once", ask):
                code, out, _, _ = verify(vm.url)
            self.assertEqual((code, out.count("can't tell  ")), (0, 1))

    def test_what_differs_is_said(self):
        with imds.Emulator(faults=["instance/compute/nonsense: 503 always"]) as vm:
            code, out, errors, _ = verify(vm.url)
        self.assertEqual((code, errors), (1, ""))
        self.assertIn("\ndiffers     observed    unknown field: status 503, not 404\n", out)

    def test_nobody_and_another(self):
        for url, code in ((CLOSED, 3), ("nonsense", 2), ("ftp://127.0.0.1", 2)):
            with self.subTest(url=url):
                self.assertEqual(call("verify", url, "--timeout", "1")[0], code)
        with Script(reply(200, b"<html>hello</html>", "text/html")) as web:
            self.assertEqual(verify(web.url)[0], 5)
        with Script(b"SSH-2.0-OpenSSH_9.2\r\n") as ssh:
            self.assertEqual(verify(ssh.url)[0], 5)

    def test_what_is_wrong_in_nearly_all_is_still_a_mock(self):
        pretty = json.dumps({"compute": {"name": "x"}}, indent=2).encode()
        for answer in (reply(200, pretty), lambda request: reply(200, b'{"access_token":"x"}') if "/oauth2/" in request
                       else reply(404, b"no", "text/html")):
            with self.subTest(answer=answer), Script(answer) as server:
                self.assertEqual(verify(server.url)[0], 1)

    def test_who_goes_away(self):
        vm, rows = imds.Emulator().start(), imds.contract_checks()[:6]
        with mock.patch.object(imds, "contract_checks", lambda: rows), mock.patch.object(
                imds, "judge", lambda *answer: vm.stop() or ""):
            code, out, errors, _ = verify(vm.url, "--timeout", "1")
        self.assertEqual((code, out.count("nobody answers"), errors.count("nobody answers")), (3, 5, 1))

    def test_a_service_that_throttles(self):
        with imds.Emulator(rate_limit=1, clock=Steps()) as vm:
            code, out, _, _ = verify(vm.url)
        self.assertIn("can't tell  documented", out)
        self.assertIn("throttled", out)
        self.assertEqual(code, 4)  # most could not be told, so it did not pass
