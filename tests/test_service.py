"""Room 3: requests and answers, without a socket, in the order of the service's rules."""

import json
import unittest

import imds

OK = {"metadata": "true"}
NOW = 1770462286  # Sat, 07 Feb 2026 11:04:46 GMT, when the header block below was recorded


def service(*args, **kwargs):
    return imds.Service(lambda: NOW, *args, **kwargs)


def ask(target, headers=OK, verb="GET", body=b"", of=None):
    return (of or service()).respond(imds.Request(verb, target, dict(headers), body))


V = "?api-version=2021-02-01"
HEADER_BODY = '{ "error": "Bad request: . Required metadata header not specified" }'
IDENTITY_HEADER_BODY = '{"error":"invalid_request","error_description":"Required metadata header not specified"}'
VERSION_BODY = ('{"error":"Bad request. api-version is invalid or was not specified in the request.'
                ' For more information refer to aka.ms/azureimds","newest-versions":["2025-04-07","2024-07-17","2024-03-15"]}')
NOT_FOUND, BAD = '{ "error": "Not found" }', '{ "error": "Bad request" }'


class Rules(unittest.TestCase):
    ROWS = [  # verb, target, headers, status, body (None: any)
        # verbs
        ("PUT", "/latest/api/token", {}, 400, imds.VERB_BODY.replace("$verb", "PUT")),
        ("HEAD", "/", {}, 400, imds.VERB_BODY.replace("$verb", "HEAD")),
        ("DELETE", "/x", OK, 400, imds.VERB_BODY.replace("$verb", "DELETE")),
        ("get", "/x", OK, 400, imds.VERB_BODY.replace("$verb", "get")),
        ("PUT", "/metadata/instance" + V, OK, 405, '{ "error": "Not allowed" }'),
        ("HEAD", "/metadata/instance" + V, OK, 405, None),
        ("POST", "/metadata/instance" + V, OK, 405, None),
        ("PATCH", "/metadata", {}, 405, None),  # before the header
        # outside /metadata
        ("GET", "/", {}, 400, HEADER_BODY),
        ("GET", "/", OK, 404, imds.OUTSIDE_BODY),
        ("GET", "/doesnotexist", {}, 404, imds.OUTSIDE_BODY),
        ("GET", "/latest/meta-data/", OK, 404, imds.OUTSIDE_BODY),
        ("POST", "/x", OK, 404, imds.OUTSIDE_BODY),
        ("GET", "/metadatax", OK, 404, imds.OUTSIDE_BODY),
        ("GET", "/Metadata/instance" + V, OK, 404, imds.OUTSIDE_BODY),
        # the Metadata header
        ("GET", "/metadata/instance/compute" + V, {}, 400, HEADER_BODY),
        ("GET", "/metadata/nonsense", {}, 400, HEADER_BODY),  # before the version and the path
        ("GET", "/metadata/identity/oauth2/token", {}, 400, IDENTITY_HEADER_BODY),
        ("GET", "/metadata/instance" + V, {"metadata": "True"}, 200, None),
        ("GET", "/metadata/instance" + V, {"metadata": "TRUE"}, 200, None),
        ("GET", "/metadata/instance" + V, {"metadata": "true,TRUE"}, 200, None),
        ("GET", "/metadata/instance" + V, {"metadata": "true,false"}, 400, HEADER_BODY),
        ("GET", "/metadata/instance" + V, {"metadata": "false"}, 400, HEADER_BODY),
        ("GET", "/metadata/instance" + V, {"metadata": "1"}, 400, HEADER_BODY),
        ("GET", "/metadata/instance" + V, {"metadata": ""}, 400, HEADER_BODY),
        # X-Forwarded-For
        ("GET", "/metadata/instance" + V, {"metadata": "true", "x-forwarded-for": ""}, 400, BAD),
        ("GET", "/metadata/instance", {"metadata": "true", "x-forwarded-for": "1.2.3.4"}, 400, BAD),  # before version
        ("GET", "/metadata/instance", {"x-forwarded-for": "1.2.3.4"}, 400, HEADER_BODY),  # after the header
        ("GET", "/metadata/instance" + V, {"metadata": "true", "forwarded": "for=1.2.3.4", "via": "x"}, 200, None),
        # duplicate parameters
        ("GET", "/metadata/instance" + V + "&api-version=2021-02-01", OK, 400, BAD),
        ("GET", "/metadata/instance" + V + "&x=1&x=2", OK, 400, BAD),
        ("GET", "/metadata/instance?x=1&x=2", OK, 400, BAD),  # before the version
        ("GET", "/metadata/instance" + V + "&x=1&X=2", OK, 200, None),
        ("GET", "/metadata/instance" + V + "&&extended=true&any=thing", OK, 200, None),
        # api-version
        ("GET", "/metadata/instance", OK, 400, VERSION_BODY),
        ("GET", "/metadata", OK, 400, VERSION_BODY),
        ("GET", "/metadata/instance/compute/location", OK, 400, VERSION_BODY),
        ("GET", "/metadata/nonsense", OK, 400, VERSION_BODY),  # before the path
        ("GET", "/metadata/instance?api-version=2030-01-01", OK, 400, VERSION_BODY),
        ("GET", "/metadata/instance?api-version=", OK, 400, VERSION_BODY),
        ("GET", "/metadata/instance?api-version=latest", OK, 400, VERSION_BODY),
        ("GET", "/metadata/instance?version=2021-02-01", OK, 400, VERSION_BODY),
        ("GET", "/metadata/instance?API-VERSION=2021-02-01", OK, 400, VERSION_BODY),
        ("GET", "/metadata/instance?api%2Dversion=2021-02%2D01", OK, 200, None),
        ("GET", "/metadata/versions", OK, 200, json.dumps({"apiVersions": list(imds.VERSIONS)},
                                                          separators=(",", ":"))),
        ("GET", "/metadata/versions", {}, 400, HEADER_BODY),
        # paths
        ("GET", "/metadata" + V, OK, 404, NOT_FOUND),
        ("GET", "/metadata" + V + "&format=text", OK, 200, None),
        ("GET", "/metadata/nonsense" + V, OK, 404, NOT_FOUND),
        ("GET", "/metadata/instancex" + V, OK, 404, NOT_FOUND),
        ("GET", "/metadata/instance/compute/identity" + V + "&format=text", OK, 404, NOT_FOUND),
        ("GET", "/metadata/instance/compute/vmScaleSetName?api-version=2017-08-01&format=text", OK, 404, NOT_FOUND),
        ("GET", "/metadata/instance/network/interface/1" + V, OK, 404, NOT_FOUND),
        ("GET", "/metadata/instance/network/interface/x" + V, OK, 404, NOT_FOUND),
        ("GET", "/metadata/instance/Compute" + V, OK, 404, NOT_FOUND),
        ("GET", "/metadata/instance/compute/nope" + V, OK, 404, NOT_FOUND),  # before the format
        ("GET", "/metadata/versions/x", OK, 404, NOT_FOUND),
        ("GET", "/metadata/instance/" + V, OK, 200, None),
        ("GET", "/metadata/instance/compute/name/" + V + "&format=text", OK, 200, "avset2"),
        ("GET", "//metadata//instance/network/interface/0//macAddress" + V + "&format=text", OK, 200, "000D3A36DDED"),
        ("GET", "/metadata/./instance/x/../compute/name" + V + "&format=text", OK, 200, "avset2"),
        ("GET", "/../../metadata/instance/compute/%6Eame" + V + "&format=text", OK, 200, "avset2"),
        ("GET", "/metadata/instance/%2e%2e/%2e%2e/etc" + V, OK, 404, imds.OUTSIDE_BODY),
        ("GET", "/metadata/instance/compute/%256Eame" + V + "&format=text", OK, 404, NOT_FOUND),  # decoded once
        ("GET", "/metadata/instance/%00" + V, OK, 400, BAD),
        ("GET", "/metadata/instance/%ff" + V, OK, 400, BAD),
        ("GET", "http://169.254.169.254/metadata/instance/compute/name" + V + "&format=text", OK, 200, "avset2"),
        # format
        ("GET", "/metadata/instance/compute/vmId" + V, OK, 400, BAD),
        ("GET", "/metadata/instance/compute/vmId" + V + "&format=json", OK, 400, BAD),
        ("GET", "/metadata/instance/compute" + V + "&format=xml", OK, 400, BAD),
        ("GET", "/metadata/instance/compute" + V + "&format=", OK, 400, BAD),
        ("GET", "/metadata/instance/compute" + V + "&format=TEXT", OK, 400, BAD),
        ("GET", "/metadata/instance/compute/plan" + V + "&format=json", OK, 200,
         '{"name":"","product":"","publisher":""}'),
        ("GET", "/metadata/instance/compute/tagsList" + V, OK, 200, "[]"),
        ("GET", "/metadata/instance/compute/tagsList" + V + "&format=text", OK, 200, ""),
        ("GET", "/metadata/instance/compute/vmScaleSetName" + V + "&format=text", OK, 200, ""),
    ]

    def test_rows(self):
        for verb, target, headers, status, body in self.ROWS:
            with self.subTest(verb=verb, target=target, headers=headers):
                response = ask(target, headers, verb)
                self.assertEqual(response.status, status)
                if body is not None:
                    self.assertEqual(response.body.decode(), body)
                self.assertEqual(bool(response.note), status != 200)

    def test_bodies_have_the_recorded_sizes(self):
        for target, headers, verb, size in (
            ("/metadata/instance" + V, {}, "GET", 68), ("/metadata/identity/x", {}, "GET", 88),
            ("/x", {}, "PUT", 322), ("/", {}, "HEAD", 323), ("/x", {}, "GET", 1245),
        ):
            with self.subTest(target=target):
                self.assertEqual(len(ask(target, headers, verb).body), size)


class Headers(unittest.TestCase):
    def test_json(self):
        response = ask("/metadata/instance" + V)
        self.assertEqual([name for name, _ in response.headers],
                         ["Content-Type", "Server", "x-ms-request-id", "Date", "Content-Length"])
        values = dict(response.headers)
        self.assertEqual(values["Content-Type"], "application/json; charset=utf-8")
        self.assertRegex(values["Server"], r"^IMDS/\d+\.\d+\.\d+\.(\d+)$")
        self.assertRegex(values["x-ms-request-id"], r"^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-8[0-9a-f]{3}-[0-9a-f]{12}$")
        self.assertEqual(values["Date"], "Sat, 07 Feb 2026 11:04:46 GMT")
        self.assertEqual(int(values["Content-Length"]), len(response.body))

    def test_request_ids_differ(self):
        one = service()
        ids = {dict(ask("/metadata/versions", of=one).headers)["x-ms-request-id"] for _ in range(100)}
        self.assertEqual(len(ids), 100)

    def test_the_other_dialects(self):
        for target, verb, order, content_type, server in (
            ("/x", "PUT", "Content-Length Content-Type Server Date", "text/xml; charset=utf-8", "Microsoft-IIS/10.0"),
            ("/x", "GET", "Content-Type Server Date Content-Length", "text/html", "Microsoft-IIS/10.0"),
        ):
            with self.subTest(verb=verb):
                headers = ask(target, {}, verb).headers
                self.assertEqual(" ".join(name for name, _ in headers), order)
                self.assertEqual((dict(headers)["Content-Type"], dict(headers)["Server"]), (content_type, server))

    def test_text(self):
        self.assertEqual(dict(ask("/metadata/instance" + V + "&format=text").headers)["Content-Type"],
                         "text/plain; charset=utf-8")

    def test_allow(self):
        self.assertEqual(dict(ask("/metadata/instance", OK, "PUT").headers)["Allow"], "GET")


class Documents(unittest.TestCase):
    """Every example of the 2018 document."""

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

    def of(self, target, document=None, **settings):
        response = ask("/metadata/instance" + target, of=service(document, **settings))
        self.assertEqual(response.status, 200)
        return response.body.decode()

    def test_1_all_categories(self):
        self.assertEqual(list(json.loads(self.of("?api-version=2017-08-01"))), ["compute", "network"])

    def test_2_text(self):
        self.assertEqual(self.of("?api-version=2017-08-01&format=text"), "compute/\nnetwork/")

    def test_3_network(self):
        self.assertEqual(
            self.of("/network?api-version=2017-08-01", self.CANARY),
            '{"interface":[{"ipv4":{"ipAddress":[{"privateIpAddress":"10.1.0.4","publicIpAddress":"X.X.X.X"}],'
            '"subnet":[{"address":"10.1.0.0","prefix":"24"}]},"ipv6":{"ipAddress":[]},"macAddress":"000D3AF806EC"}]}')

    def test_4_an_address(self):
        path = "/network/interface/0/ipv4/ipAddress/0/publicIpAddress?api-version=2017-08-01&format=text"
        self.assertEqual(self.of(path), "203.0.113.5")

    def test_5_the_linux_sample(self):
        sample = json.loads(self.of("?api-version=2017-12-01"))
        compute, interface = sample["compute"], sample["network"]["interface"][0]
        for name, value in {
            "location": "westus", "name": "avset2", "offer": "UbuntuServer", "osType": "Linux", "placementGroupId": "",
            "platformFaultDomain": "1", "platformUpdateDomain": "1", "publisher": "Canonical",
            "resourceGroupName": "myrg", "sku": "16.04-LTS", "tags": "", "version": "16.04.201708030",
            "vmId": "13f56399-bd52-4150-9748-7190aae1ff21", "vmScaleSetName": "", "vmSize": "Standard_D1", "zone": "1",
        }.items():
            self.assertEqual(compute[name], value, name)
        self.assertEqual(len(compute), 17)
        self.assertEqual(interface["ipv4"]["ipAddress"][0]["privateIpAddress"], "10.1.2.5")
        self.assertEqual(interface["ipv4"]["subnet"], [{"address": "10.1.2.0", "prefix": "24"}])
        self.assertEqual((interface["ipv6"], interface["macAddress"]), ({"ipAddress": []}, "000D3A36DDED"))

    def test_6_the_windows_sample(self):
        sample = json.loads(self.of("?api-version=2017-08-01", profile="windows"))
        for name, value in {
            "location": "westus", "name": "SQLTest", "offer": "SQL2016SP1-WS2016", "osType": "Windows",
            "platformFaultDomain": "0", "platformUpdateDomain": "0", "publisher": "MicrosoftSQLServer",
            "sku": "Enterprise", "version": "13.0.400110", "vmId": "453945c8-3923-4366-b2d3-ea4c80e9b70e",
            "vmSize": "Standard_DS2",
        }.items():
            self.assertEqual(sample["compute"][name], value, name)
        interface = sample["network"]["interface"][0]
        self.assertEqual(interface["ipv4"]["ipAddress"][0]["privateIpAddress"], "10.0.1.4")
        self.assertEqual(interface["macAddress"], "002248020E1E")

    def test_7_and_8_leaves(self):
        for name, value in (("vmId", "5c08b38e-4d57-4c23-ac45-aca61037f084"), ("platformFaultDomain", "0")):
            self.assertEqual(self.of("/compute/%s?api-version=2017-08-01&format=text" % name, self.CANARY), value)

    def test_9_compute_is_not_wrapped(self):
        compute = json.loads(self.of("/compute?api-version=2017-04-02", self.CANARY))
        self.assertEqual(compute, self.CANARY["compute"])

    def test_text_listing_of_compute(self):
        self.assertEqual(self.of("/compute?api-version=2017-04-02&format=text"),
                         "location\nname\noffer\nosType\nplatformFaultDomain\nplatformUpdateDomain\npublisher\nsku\n"
                         "version\nvmId\nvmSize")
        self.assertEqual(self.of("/network/interface?api-version=2017-04-02&format=text", profile="scaleset"), "0/\n1/")
        self.assertEqual(self.of("/network/interface/0/ipv4?api-version=2017-04-02&format=text"),
                         "ipAddress/\nsubnet/")

    def test_a_recorded_document_comes_back_byte_for_byte(self):
        recorded = (
            '{"compute":{"location":"northeurope","name":"vault-cluster_0","offer":"","osType":"Linux",'
            '"platformFaultDomain":"0","platformUpdateDomain":"0","publisher":"","sku":"","version":"",'
            '"vmId":"7f7e2862-4d06-4df3-bcc3-0a4e83822721","vmSize":"Standard_A0"},"network":{"interface":[{"ipv4":'
            '{"ipAddress":[{"privateIpAddress":"10.10.235.7","publicIpAddress":""}],"subnet":[{"address":"10.10.235.0",'
            '"prefix":"24"}]},"ipv6":{"ipAddress":[]},"macAddress":"000D3AB7733F"}]}}')
        self.assertEqual(self.of("?api-version=2017-04-02", json.loads(recorded)), recorded)

    def test_utf_8(self):
        self.assertEqual(self.of("/compute/tags" + V + "&format=text", {"compute": {"tags": "caf\u00e9:\u2603"}}),
                         "caf\u00e9:\u2603")
        self.assertIn('"caf\u00e9"', self.of("/compute" + V, {"compute": {"tags": "caf\u00e9"}}))

    def test_every_version(self):
        for version in imds.VERSIONS:
            with self.subTest(version=version):
                self.assertEqual(json.loads(self.of("?api-version=" + version)),
                                 imds.view(imds.complete(imds.VMS["linux"]), version))


class Eras(unittest.TestCase):
    OLD = '{ "error": "Not found. Invalid version requested" }'

    def test_versions_by_cloud_in_2018(self):
        for cloud, served in (("AzurePublicCloud", "2018-02-01"), ("AzureUSGovernmentCloud", "2017-08-01"),
                              ("AzureChinaCloud", "2017-08-01"), ("AzureGermanCloud", "2017-08-01")):
            one = service(cloud=cloud, as_of="2018", rate_limit=0)
            with self.subTest(cloud=cloud):
                self.assertEqual(ask("/metadata/instance?api-version=" + served, of=one).status, 200)
                for version in ("2017-03-01", "2018-04-02", "nonsense"):
                    response = ask("/metadata/instance?api-version=" + version, of=one)
                    self.assertEqual((response.status, response.body.decode()), (404, self.OLD))
        self.assertEqual(ask("/metadata/instance?api-version=2018-02-01", of=one).status, 404)

    def test_the_rest_of_2018(self):
        one = service(as_of="2018", rate_limit=0)
        response = ask("/metadata/instance", of=one)
        self.assertEqual(response.status, 400)
        self.assertEqual(json.loads(response.body.decode())["newest-versions"],
                         ["2018-02-01", "2017-12-01", "2017-08-01"])
        self.assertEqual(ask("/metadata/versions?api-version=2018-02-01", of=one).status, 404)
        self.assertEqual(ask("/metadata/instance", verb="PUT", of=one).status, 405)

    def test_narrowed_versions(self):
        one = service(versions=["2021-02-01", "2017-04-02"])
        self.assertEqual(ask("/metadata/versions", of=one).body, b'{"apiVersions":["2017-04-02","2021-02-01"]}')
        self.assertIn(b'"newest-versions":["2021-02-01","2017-04-02"]', ask("/metadata/instance", of=one).body)
        self.assertEqual(ask("/metadata/instance?api-version=2021-01-01", of=one).status, 400)

    def test_cloud_sets_az_environment(self):
        for cloud in imds.CLOUDS:
            self.assertEqual(service(cloud=cloud).instance["compute"]["azEnvironment"], cloud)
        kept = service({"compute": {"azEnvironment": "AzureStack"}})
        self.assertEqual(kept.instance["compute"]["azEnvironment"], "AzureStack")

    def test_values_that_can_not_be_served(self):
        for settings, message in (
            ({"profile": "linus"}, "did you mean linux?"), ({"cloud": "azurechinacloud"}, "AzureChinaCloud?"),
            ({"versions": ["2021-02-02"]}, "did you mean"), ({"versions": []}, "at least one"),
            ({"as_of": "2019"}, "'2018'"), ({"rate_limit": -1}, "rate_limit"), ({"instance": []}, "an object"),
            ({"rate_limit": float("nan")}, "rate_limit"),
        ):
            with self.subTest(settings=settings):
                with self.assertRaises(ValueError) as caught:
                    service(**settings)
                self.assertIn(message, str(caught.exception))


class Throttling(unittest.TestCase):
    def setUp(self):
        self.now = NOW

    def service(self, **settings):
        return imds.Service(lambda: self.now, **settings)

    def statuses(self, one, count, target="/metadata/instance" + V):
        return [ask(target, of=one).status for _ in range(count)]

    def test_off_by_default(self):
        self.assertEqual(set(self.statuses(self.service(), 50)), {200})

    def test_a_bucket_of_five_that_refills(self):
        one = self.service(rate_limit=5)
        self.assertEqual(self.statuses(one, 6), [200] * 5 + [429])
        self.now += 0.2
        self.assertEqual(self.statuses(one, 2), [200, 429])
        self.now += 100
        self.assertEqual(self.statuses(one, 6), [200] * 5 + [429])

    def test_less_than_one_a_second(self):
        one = self.service(rate_limit=0.5)
        self.assertEqual(self.statuses(one, 2), [200, 429])
        self.now += 2
        self.assertEqual(self.statuses(one, 2), [200, 429])

    def test_bodies(self):
        one = self.service(rate_limit=1)
        self.statuses(one, 1)
        self.assertEqual(ask("/metadata/instance" + V, of=one).body, b'{ "error": "Too many requests" }')
        response = ask("/metadata/instance" + V + "&format=text", of=one)
        self.assertEqual(response.body, b"Too many requests")
        self.assertNotIn("Retry-After", dict(response.headers))

    def test_it_comes_last_and_counts_refusals(self):
        one = self.service(rate_limit=1)
        self.assertEqual(self.statuses(one, 2, "/metadata/instance"), [400, 400])
        self.assertEqual(self.statuses(one, 1), [429])
        self.assertEqual(self.statuses(one, 1, "/metadata/instance/nope" + V), [404])

    def test_on_in_2018(self):
        one = self.service(as_of="2018")
        self.assertEqual(self.statuses(one, 6, "/metadata/instance?api-version=2017-08-01"), [200] * 5 + [429])


class Updates(unittest.TestCase):
    def test_update_shows_at_once(self):
        one = service()
        ask("/metadata/instance" + V, of=one)
        one.update({"compute": {"vmSize": "Standard_D4s_v5", "tags": None}, "network": {"interface": []}})
        body = json.loads(ask("/metadata/instance" + V, of=one).body.decode())
        self.assertEqual((body["compute"]["vmSize"], body["compute"]["tags"], body["network"]),
                         ("Standard_D4s_v5", "", {"interface": []}))

    def test_a_wrong_shape_changes_nothing(self):
        one = service()
        for patch in ({"compute": "x"}, {"compute": {"tagsList": "x"}}, [], "x"):
            with self.subTest(patch=patch), self.assertRaises(ValueError):
                one.update(patch)
        self.assertEqual(one.instance, service().instance)

    def test_made_up_targets_do_not_fill_the_memory(self):
        one = service()
        for number in range(3000):
            ask("/metadata/instance%s&x=%d" % (V, number), of=one)
        self.assertLessEqual(len(one._pages), 1000)


if __name__ == "__main__":
    unittest.main()
