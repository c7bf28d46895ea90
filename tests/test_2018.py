"""The service of the 2018 document: its every example, in its order, and what as_of="2018" makes of the rest."""

import json
import unittest

from tests.support import OK, TOKEN, VAULT, Steps, ask, bench, document, page, service

INSTANCE, EVENTS = "/metadata/instance", "/metadata/scheduledevents?api-version="
CANARY = {
    "compute": {"location": "CentralUS", "name": "IMDSCanary", "offer": "RHEL", "osType": "Linux",
                "platformFaultDomain": "0", "platformUpdateDomain": "0", "publisher": "RedHat", "sku": "7.2",
                "version": "7.2.20161026", "vmId": "5c08b38e-4d57-4c23-ac45-aca61037f084",
                "vmSize": "Standard_DS2"},
    "network": {"interface": [{
        "ipv4": {"ipAddress": [{"privateIpAddress": "10.1.0.4", "publicIpAddress": "X.X.X.X"}],
                 "subnet": [{"address": "10.1.0.0", "prefix": "24"}]},
        "macAddress": "000D3AF806EC"}]},
}


class Examples(unittest.TestCase):
    """Asked of the service of today and of that of 2018: the answers are the same."""

    def rows(self):
        return (lambda instance=None, **settings: service(instance, **settings),
                lambda instance=None, **settings: service(instance, as_of="2018", **settings))

    def test_queries_are_case_sensitive(self):
        for target, status in (("/metadata/instance", 200), ("//metadata/instance", 200), ("/%6detadata/instance", 200),
                               ("/Metadata/instance", 404), ("/metadata/Instance", 404)):
            answer = ask(target + "?api-version=2017-08-01", of=service(as_of="2018"))
            self.assertEqual(answer.status, status, target)
        self.assertEqual(ask("/Metadata/instance?api-version=2017-08-01&x=/metadata", of=service(as_of="2018")).status, 404)

    def test_1_all_categories(self):
        for make in self.rows():
            self.assertEqual(list(document(INSTANCE + "?api-version=2017-08-01", make())), ["compute", "network"])

    def test_2_text(self):
        for make in self.rows():
            self.assertEqual(page(INSTANCE + "?api-version=2017-08-01&format=text", make()), "compute/\nnetwork/")

    def test_3_network(self):
        for make in self.rows():
            self.assertEqual(
                page(INSTANCE + "/network?api-version=2017-08-01", make(CANARY)),
                '{"interface":[{"ipv4":{"ipAddress":[{"privateIpAddress":"10.1.0.4","publicIpAddress":"X.X.X.X"}],'
                '"subnet":[{"address":"10.1.0.0","prefix":"24"}]},"ipv6":{"ipAddress":[]},"macAddress":"000D3AF806EC"}]}')

    def test_4_an_address(self):
        path = INSTANCE + "/network/interface/0/ipv4/ipAddress/0/publicIpAddress?api-version=2017-08-01&format=text"
        for make in self.rows():
            self.assertEqual(page(path, make(CANARY)), "X.X.X.X")
            self.assertEqual(page(path, make()), "203.0.113.5")

    def test_5_the_linux_sample(self):
        for make in self.rows():
            sample = document(INSTANCE + "?api-version=2017-12-01", make())
            compute, interface = sample["compute"], sample["network"]["interface"][0]
            subscription = compute.pop("subscriptionId")  # masked in the document
            self.assertRegex(subscription, "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
            self.assertEqual(compute, {
                "location": "westus", "name": "avset2", "offer": "UbuntuServer", "osType": "Linux", "placementGroupId": "",
                "platformFaultDomain": "1", "platformUpdateDomain": "1", "publisher": "Canonical",
                "resourceGroupName": "myrg", "sku": "16.04-LTS", "tags": "", "version": "16.04.201708030",
                "vmId": "13f56399-bd52-4150-9748-7190aae1ff21", "vmScaleSetName": "", "vmSize": "Standard_D1", "zone": "1"})
            self.assertEqual(interface["ipv4"]["ipAddress"][0]["privateIpAddress"], "10.1.2.5")
            self.assertEqual(interface["ipv4"]["subnet"], [{"address": "10.1.2.0", "prefix": "24"}])
            self.assertEqual((interface["ipv6"], interface["macAddress"]), ({"ipAddress": []}, "000D3A36DDED"))

    def test_6_the_windows_sample(self):
        for make in self.rows():
            sample = document(INSTANCE + "?api-version=2017-08-01", make(profile="windows"))
            for name, value in {
                "location": "westus", "name": "SQLTest", "offer": "SQL2016SP1-WS2016", "osType": "Windows",
                "platformFaultDomain": "0", "platformUpdateDomain": "0", "publisher": "MicrosoftSQLServer",
                "sku": "Enterprise", "version": "13.0.400110", "vmId": "453945c8-3923-4366-b2d3-ea4c80e9b70e",
                "vmSize": "Standard_DS2",
            }.items():
                self.assertEqual(sample["compute"][name], value, name)
            interface = sample["network"]["interface"][0]
            self.assertEqual(interface["ipv4"]["ipAddress"][0]["privateIpAddress"], "10.0.1.4")
            self.assertEqual(interface["ipv4"]["subnet"], [{"address": "10.0.1.0", "prefix": "24"}])
            self.assertEqual(interface["macAddress"], "002248020E1E")

    def test_7_and_8_leaves(self):
        for make in self.rows():
            for name, value in (("vmId", "5c08b38e-4d57-4c23-ac45-aca61037f084"), ("platformFaultDomain", "0")):
                self.assertEqual(page("%s/compute/%s?api-version=2017-08-01&format=text" % (INSTANCE, name), make(CANARY)), value)

    def test_9_compute_is_not_wrapped(self):
        for make in self.rows():
            self.assertEqual(document(INSTANCE + "/compute?api-version=2017-04-02", make(CANARY)), CANARY["compute"])
            self.assertEqual(document(INSTANCE + "/compute?api-version=2017-08-01", make(CANARY)), dict(
                CANARY["compute"], placementGroupId="", resourceGroupName="", subscriptionId="", tags=""))

    def test_fields_by_the_version_that_introduced_them(self):
        for make in self.rows():
            seen = {version: set(document("%s/compute?api-version=%s" % (INSTANCE, version), make()))
                    for version in ("2017-04-02", "2017-08-01", "2017-12-01", "2018-02-01")}
            self.assertEqual(" ".join(sorted(seen["2017-04-02"])), "location name offer osType platformFaultDomain "
                             "platformUpdateDomain publisher sku version vmId vmSize")
            self.assertEqual(seen["2017-08-01"] - seen["2017-04-02"], {"subscriptionId", "tags", "resourceGroupName",
                                                                       "placementGroupId"})
            self.assertEqual(seen["2017-12-01"] - seen["2017-08-01"], {"vmScaleSetName", "zone"})
            self.assertEqual(seen["2018-02-01"], seen["2017-12-01"])


class AsOf2018(unittest.TestCase):
    OLD = '{ "error": "Not found. Invalid version requested" }'

    def service(self, **settings):
        return service(as_of="2018", **dict({"rate_limit": 0}, **settings))

    def test_versions_by_cloud(self):
        for cloud, served, refused in (
            ("AzurePublicCloud", ["2017-04-02", "2017-08-01", "2017-12-01", "2018-02-01"], ["2017-10-01"]),
            ("AzureUSGovernmentCloud", ["2017-04-02", "2017-08-01"], ["2017-12-01", "2018-02-01"]),
            ("AzureChinaCloud", ["2017-04-02", "2017-08-01"], ["2017-12-01", "2018-02-01"]),
            ("AzureGermanCloud", ["2017-04-02", "2017-08-01"], ["2017-12-01", "2018-02-01"]),
        ):
            one = self.service(cloud=cloud)
            for version in served + ["2017-03-01"]:  # which is not on the list, but two agents ask at it
                with self.subTest(cloud=cloud, version=version):
                    self.assertEqual(ask(INSTANCE + "?api-version=" + version, of=one).status, 200)
            for version in refused + ["2018-04-02", "2025-04-07", "2025-11-15", "nonsense", ""]:
                with self.subTest(cloud=cloud, version=version):
                    response = ask(INSTANCE + "?api-version=" + version, of=one)
                    self.assertEqual((response.status, response.body.decode(), response.rule),
                                     (404, self.OLD, "version-unknown-2018"))

    def test_no_version(self):
        response = ask(INSTANCE, of=self.service())
        self.assertEqual((response.status, response.body.decode()), (400, (
            '{"error":"Bad request. api-version was not specified in the request. For more information refer to '
            'aka.ms/azureimds","newest-versions":["2018-02-01","2017-12-01","2017-08-01"]}')))
        self.assertIn(b'"newest-versions":["2017-08-01","2017-04-02"]',
                      ask(INSTANCE, of=self.service(cloud="AzureGermanCloud")).body)

    def test_statuses(self):
        header = '{ "error": "Bad request: . Required metadata header not specified" }'
        for verb, target, headers, status, body in (
            ("GET", INSTANCE + "?api-version=2017-08-01", {}, 400, header),
            ("GET", INSTANCE + "?api-version=2017-08-01", {"metadata": "true", "x-forwarded-for": "1"}, 400,
             '{ "error": "Bad request" }'),
            ("GET", INSTANCE + "/compute/nope?api-version=2017-08-01", OK, 404, '{ "error": "Not found" }'),
            ("GET", INSTANCE + "/Compute?api-version=2017-08-01", OK, 404, '{ "error": "Not found" }'),
            ("PUT", INSTANCE, OK, 405, '{ "error": "Not allowed" }'), ("DELETE", INSTANCE, OK, 405, '{ "error": "Not allowed" }'),
            ("POST", INSTANCE, OK, 405, '{ "error": "Not allowed" }'), ("POST", INSTANCE, {}, 400, header),
            ("POST", "/METADATA/instance", OK, 400, None), ("POST", "/METADATA/instance", {}, 400, None),  # outside
            ("HEAD", INSTANCE, OK, 405, '{ "error": "Not allowed" }'),
            ("HEAD", "/metadata/versions", {}, 405, '{ "error": "Not allowed" }'),
            ("HEAD", "/", {}, 400, None), ("PUT", "/x", {}, 400, None),
            ("GET", "/metadata/versions?api-version=2018-02-01", OK, 404, '{ "error": "Not found" }'),
            ("GET", "/metadata/versions", OK, 404, '{ "error": "Not found" }'),
            ("GET", "/metadata/loadbalancer?api-version=2018-02-01", OK, 404, None),
            ("GET", "/metadata/attested/document?api-version=2018-02-01", OK, 404, '{ "error": "Not found" }'),
            ("GET", "/metadata?api-version=2018-02-01&format=text", OK, 200, "identity/\ninstance/\nscheduledevents/"),
        ):
            with self.subTest(verb=verb, target=target):
                response = ask(target, headers, verb, of=self.service())
                self.assertEqual(response.status, status)
                if body is not None:
                    self.assertEqual(response.body.decode(), body)
        self.assertEqual(ask(TOKEN + VAULT, of=self.service()).status, 200)
        self.assertEqual(ask(TOKEN + VAULT, of=self.service(cloud="AzureChinaCloud")).status, 404)

    def test_events(self):
        for cloud, rows in (
            ("AzurePublicCloud", (("2017-03-01", 200), ("2017-08-01", 200), ("2017-11-01", 200), ("2019-01-01", 404),
                                  ("2020-07-01", 404))),
            ("AzureChinaCloud", (("2017-08-01", 200), ("2017-11-01", 404))),
        ):
            for version, status in rows:
                with self.subTest(cloud=cloud, version=version):
                    self.assertEqual(ask(EVENTS + version, of=self.service(cloud=cloud)).status, status)
        one = bench(as_of="2018", rate_limit=0)
        one.schedule("Reboot")
        self.assertEqual(" ".join(document(EVENTS + "2017-08-01", one)["Events"][0]),
                         "EventId EventStatus EventType ResourceType Resources NotBefore")

    def test_five_requests_a_second(self):
        clock = Steps()
        one = service(clock=clock, as_of="2018")
        self.assertEqual(one.rate_limit, 5)
        target = INSTANCE + "?api-version=2017-08-01"
        self.assertEqual([ask(target, of=one).status for _ in range(6)], [200] * 5 + [429])
        self.assertEqual(ask(TOKEN + VAULT, of=one).status, 429)  # of everything together
        clock.now += 1
        self.assertEqual(ask(TOKEN + VAULT, of=one).status, 200)
        self.assertEqual({ask(target, of=self.service()).status for _ in range(50)}, {200})

    def test_versions_can_be_named(self):
        one = self.service(versions=["2017-04-02", "2017-03-01"])
        for version, status in (("2017-04-02", 200), ("2017-03-01", 200), ("2017-08-01", 404)):
            self.assertEqual(ask(INSTANCE + "?api-version=" + version, of=one).status, status)
        self.assertEqual(json.loads(ask(INSTANCE, of=one).body.decode())["newest-versions"], ["2017-04-02", "2017-03-01"])
        with self.assertRaises(ValueError):
            self.service(versions=["2018-04-02"])
