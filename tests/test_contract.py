"""Room 1: the tables of the contract, beside facts of the service that were typed a second time."""

import unittest

import imds
from tests.support import names

DOCUMENTED = """2017-03-01 2017-04-02 2017-08-01 2017-10-01 2017-12-01 2018-02-01 2018-04-02 2018-10-01 2019-02-01 2019-03-11
    2019-04-30 2019-06-01 2019-06-04 2019-08-01 2019-08-15 2019-11-01 2020-06-01 2020-07-15 2020-09-01 2020-10-01 2020-12-01
    2021-01-01 2021-02-01 2021-03-01 2021-05-01 2021-08-01 2021-10-01 2021-11-01 2021-11-15 2021-12-13 2023-07-01 2023-11-15
    2024-03-15 2024-07-17 2025-04-07""".split()
SILENT = ["2025-07-24", "2025-11-11", "2025-11-15"]


class Versions(unittest.TestCase):
    # The leaves that the first version has, and what each later one added, counted from the documentation.
    FIRST = """compute.location compute.name compute.offer compute.osType compute.platformFaultDomain
        compute.platformUpdateDomain compute.publisher compute.sku compute.version compute.vmId compute.vmSize
        network.interface[].ipv4.ipAddress[].privateIpAddress network.interface[].ipv4.ipAddress[].publicIpAddress
        network.interface[].ipv4.subnet[].address network.interface[].ipv4.subnet[].prefix
        network.interface[].ipv6.ipAddress[].privateIpAddress network.interface[].macAddress""".split()
    ADDED = {
        "2017-08-01": 4, "2017-12-01": 2, "2018-04-02": 5, "2018-10-01": 2, "2019-02-01": 1, "2019-03-11": 1,
        "2019-06-01": 26, "2019-06-04": 2, "2019-08-01": 1, "2020-06-01": 3, "2020-07-15": 2, "2020-09-01": 1,
        "2020-10-01": 1, "2020-12-01": 2, "2021-01-01": 1, "2021-02-01": 1, "2021-03-01": 3, "2021-05-01": 5,
        "2021-10-01": 1, "2021-11-01": 6, "2021-11-15": 2, "2021-12-13": 1, "2023-07-01": 3, "2023-11-15": 2,
        "2025-07-24": 1, "2025-11-11": 2,
    }
    NAMES = {  # and what they are, where it is more than a number of them
        "2017-08-01": "placementGroupId resourceGroupName subscriptionId tags", "2017-12-01": "vmScaleSetName zone",
        "2018-04-02": "plan.name plan.product plan.publisher publicKeys[].keyData publicKeys[].path",
        "2018-10-01": "azEnvironment provider", "2019-02-01": "customData", "2019-03-11": "resourceId",
        "2019-06-04": "tagsList[].name tagsList[].value", "2019-08-01": "storageProfile.osDisk.diffDiskSettings.option",
        "2020-06-01": "isHostCompatibilityLayerVm securityProfile.secureBootEnabled securityProfile.virtualTpmEnabled",
        "2020-07-15": "osProfile.adminUsername osProfile.computerName", "2020-09-01": "licenseType",
        "2020-10-01": "osProfile.disablePasswordAuthentication", "2020-12-01": "evictionPolicy priority",
        "2021-01-01": "userData", "2021-02-01": "storageProfile.resourceDisk.size",
        "2021-03-01": "extendedLocation.name extendedLocation.type virtualMachineScaleSet.id",
        "2021-10-01": "platformSubFaultDomain", "2021-11-15": "host.id hostGroup.id",
        "2021-12-13": "securityProfile.securityType",
        "2023-07-01": "storageProfile.imageReference.communityGalleryImageId storageProfile.imageReference.exactVersion"
                      " storageProfile.imageReference.sharedGalleryImageId",
        "2023-11-15": "isVmInStandbyPool physicalZone", "2025-11-11": "interconnectGroupId interconnectSubgroupId",
    }
    FULL = {  # a document with something in every list
        "compute": {"publicKeys": [{}], "tagsList": [{}], "storageProfile": {"dataDisks": [{}]}},
        "network": {"interface": [{"ipv4": {"ipAddress": [{}], "subnet": [{}]}, "ipv6": {"ipAddress": [{}]}}]},
    }

    def test_there_are_35_in_order(self):
        self.assertEqual(len(imds.VERSIONS), 35)
        self.assertEqual(list(imds.VERSIONS), DOCUMENTED)
        self.assertEqual(list(imds.VERSIONS), sorted(imds.VERSIONS))
        self.assertEqual(list(imds.UNLISTED_VERSIONS), SILENT)
        self.assertEqual((imds.PREVIEW, imds.FIRST_GA, imds.NEWEST), ("2017-03-01", "2017-04-02", "2025-04-07"))

    def test_what_each_added(self):
        document, before = imds.complete(self.FULL), set()
        for version in DOCUMENTED[1:] + SILENT:
            with self.subTest(version=version):
                now = set(names(imds.view(document, version)))
                if version == "2017-04-02":
                    self.assertEqual(now, set(self.FIRST))
                else:
                    self.assertLessEqual(before, now)  # nothing was ever removed
                    self.assertEqual(len(now - before), self.ADDED.get(version, 0))
                    if version in self.NAMES:
                        self.assertEqual(now - before, {"compute." + name for name in self.NAMES[version].split()})
                before = now

    def test_rows_that_are_easily_wrong(self):
        for path, since in (
            ("compute/vmScaleSetName", "2017-12-01"), ("compute/plan/product", "2018-04-02"),
            ("compute/storageProfile/osDisk/encryptionSettings/enabled", "2019-06-01"),
            ("compute/storageProfile/osDisk/diffDiskSettings/option", "2019-08-01"),
            ("compute/storageProfile/osDisk/encryptionSettings/diskEncryptionKey/sourceVault/id", "2021-11-01"),
            ("compute/storageProfile/dataDisks/0/opsPerSecondThrottle", "2021-05-01"),
            ("compute/securityProfile/encryptionAtHost", "2021-11-01"),
            ("compute/storageProfile/imageReference/exactVersion", "2023-07-01"),
            ("compute/physicalZone", "2023-11-15"), ("network/interface/0/interfaceCompartmentID", "2025-07-24"),
        ):
            with self.subTest(path=path):
                document, versions = imds.complete(self.FULL), DOCUMENTED + SILENT
                imds.resolve(imds.view(document, since), path)
                with self.assertRaises(imds.NotFound):
                    imds.resolve(imds.view(document, versions[versions.index(since) - 1]), path)
                self.assertEqual(imds.since(path), since)
        for path, since in (("compute/name", "2017-04-02"), ("network/interface/7/macAddress", "2017-04-02"),
                            ("extended/compute/ppsType", "2021-08-01"), ("compute/nonsense", None)):
            self.assertEqual(imds.since(path), since)

    def test_data_disks_have_what_they_were_seen_to_have_and_no_more(self):
        disk = imds.view(imds.complete(self.FULL), "2025-04-07")["compute"]["storageProfile"]["dataDisks"][0]
        self.assertEqual(sorted(disk), [
            "bytesPerSecondThrottle", "caching", "createOption", "diskCapacityBytes", "diskSizeGB", "image", "isSharedDisk",
            "isUltraDisk", "lun", "managedDisk", "name", "opsPerSecondThrottle", "vhd", "writeAcceleratorEnabled"])

    def test_what_is_not_set(self):
        document = imds.complete(self.FULL)
        for path, value in (  # a flag is never "", and a size is "0" (WIRE.md, value facts)
            ("compute/isHostCompatibilityLayerVm", "false"), ("compute/securityProfile/encryptionAtHost", "false"),
            ("compute/securityProfile/secureBootEnabled", "false"), ("compute/securityProfile/virtualTpmEnabled", "false"),
            ("compute/storageProfile/dataDisks/0/isSharedDisk", "false"),
            ("compute/storageProfile/dataDisks/0/isUltraDisk", "false"),
            ("compute/storageProfile/dataDisks/0/writeAcceleratorEnabled", "false"),
            ("compute/storageProfile/osDisk/writeAcceleratorEnabled", "false"),
            ("compute/storageProfile/osDisk/encryptionSettings/enabled", "false"),
            ("compute/storageProfile/resourceDisk/size", "0"),
            ("compute/osProfile/disablePasswordAuthentication", ""), ("compute/isVmInStandbyPool", ""),
            ("compute/securityProfile/securityType", ""), ("compute/storageProfile/osDisk/diskSizeGB", ""),
            ("compute/priority", ""), ("extended/compute/hasCustomData", False), ("extended/compute/ppsType", ""),
        ):
            with self.subTest(path=path):
                self.assertEqual(imds.resolve(document, path), value)


class Endpoints(unittest.TestCase):
    def test_rows(self):
        self.assertEqual({path: (endpoint.since, "/".join(endpoint.verbs)) for path, endpoint in imds.ENDPOINTS.items()}, {
            "attested/document": ("2018-10-01", "GET"), "identity/info": ("2018-02-01", "GET"),
            "identity/oauth2/token": ("2018-02-01", "GET"), "instance": ("2017-03-01", "GET"),
            "loadbalancer": ("2020-10-01", "GET"), "scheduledevents": ("2017-03-01", "GET/POST"), "versions": (None, "GET"),
            "identity/credential": (None, "GET/POST"), "identity/getplatformmetadata": (None, "GET/POST"),
            "identity/issuecredential": (None, "GET/POST")})
        self.assertEqual((imds.DEFAULT_ENDPOINT, imds.DEFAULT_PORT), ("http://169.254.169.254", 8169))

    def test_clouds(self):
        self.assertEqual({cloud: row.domain for cloud, row in imds.CLOUDS.items()}, {
            "AzurePublicCloud": "metadata.azure.com", "AzureUSGovernmentCloud": "metadata.azure.us",
            "AzureChinaCloud": "metadata.azure.cn", "AzureGermanCloud": "metadata.microsoftazure.de"})

    def test_limits(self):
        self.assertEqual((imds.RATE_LIMIT, imds.IDENTITY_RATE_LIMIT, imds.IDENTITY_AT_ONCE), (5, 20, 5))
        self.assertEqual((imds.TOKEN_SECONDS, imds.TOKEN_BACKDATED, imds.ATTESTED_SECONDS, imds.MAX_NONCE),
                         (86400, 300, 21600, 32))


class Events(unittest.TestCase):
    def test_versions(self):
        self.assertEqual(list(imds.EVENT_VERSIONS), ["2017-03-01", "2017-08-01", "2017-11-01", "2019-01-01", "2019-04-01",
                                                     "2019-08-01", "2020-07-01"])
        self.assertEqual((imds.EVENTS_GA, imds.EVENTS_NEWEST), ("2017-08-01", "2020-07-01"))

    def test_fields(self):
        self.assertEqual([(name, row.since, row.type, row.default) for name, row in imds.EVENT_FIELDS.items()], [
            ("EventId", "2017-03-01", str, ""), ("EventStatus", "2017-03-01", str, "Scheduled"),
            ("EventType", "2017-03-01", str, ""), ("ResourceType", "2017-03-01", str, "VirtualMachine"),
            ("Resources", "2017-03-01", list, ()), ("NotBefore", "2017-03-01", str, ""),
            ("Description", "2019-04-01", str, ""), ("EventSource", "2019-08-01", str, "Platform"),
            ("DurationInSeconds", "2020-07-01", int, -1)])
        self.assertEqual([row.variable for row in imds.EVENT_FIELDS.values() if row.variable], [
            "ID", "STATUS", "TYPE", "RESOURCES", "NOT_BEFORE", "DESCRIPTION", "SOURCE", "DURATION"])

    def test_types(self):
        self.assertEqual({kind: (row.since, row.notice, row.duration, row.lasts) for kind, row in imds.EVENT_TYPES.items()}, {
            "Freeze": ("2017-03-01", 900, 5, 300), "Reboot": ("2017-03-01", 900, -1, 600),
            "Redeploy": ("2017-03-01", 600, -1, 600), "Preempt": ("2017-11-01", 30, -1, 600),
            "Terminate": ("2019-01-01", 300, -1, 600)})
        self.assertEqual(sorted(imds.SCENARIOS), ["cancelled-maintenance", "host-agent-maintenance", "live-migration",
                                                  "redeploy", "user-reboot", "user-redeploy"])


class Words(unittest.TestCase):
    def test_reason_phrases(self):
        for status, phrase in (
            (200, "OK"), (400, "Bad Request"), (404, "Not Found"), (405, "Method Not Allowed"), (408, "Request Timeout"),
            (413, "Content Too Large"), (414, "URI Too Long"), (429, "Too Many Requests"),
            (431, "Request Header Fields Too Large"), (500, "Internal Server Error"),
        ):
            self.assertEqual(imds.REASONS[status], phrase)

    def test_the_body_of_a_wrong_verb(self):
        body = ('<?xml version="1.0" encoding="utf-8"?>\n'
                '<Error xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:xsd="http://www.w3.org/2001/XMLSchema">\n'
                '    <Code>InvalidHttpVerb</Code>\n'
                '    <Message>The HTTP verb specified was not recognized by the server.</Message>\n'
                "    <Details>'$verb' is not a supported verb.</Details>\n"
                '</Error>')
        self.assertEqual(imds.VERB_BODY, body)
        self.assertEqual([len(body.replace("$verb", verb)) for verb in ("PUT", "HEAD")], [322, 323])

    def test_the_body_of_what_is_gone(self):
        self.assertEqual(imds.GONE_BODY, (
            '<?xml version="1.0" encoding="utf-8"?>\n'
            '<Error xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:xsd="http://www.w3.org/2001/XMLSchema">\n'
            '    <Code>ResourceNotAvailable</Code>\n'
            '    <Message>The resource requested is no longer available. Please refresh your cache.</Message>\n'
            '    <Details></Details>\n'
            '</Error>'))
        self.assertEqual(len(imds.GONE_BODY), 313)

    def test_the_page_of_the_web_server(self):
        import hashlib

        page = imds.OUTSIDE_BODY.encode()
        self.assertEqual((len(page), page.count(b"\r\n"), page.count(b"\n")), (1245, 29, 29))
        self.assertTrue(page.startswith(b'<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "http://www.w3.org/TR/'))
        self.assertIn(b"<title>404 - File or directory not found.</title>", page)
        self.assertEqual(hashlib.sha256(page).hexdigest(), "dc1d54dab6ec8c00f70137927504e4f222c8395f10760b6beecfcfa94e08249f")

    def test_what_makes_an_attested_document_bad(self):
        self.assertEqual(sorted(imds.FLAWS), ["domain", "expired", "nonce", "signature", "signer", "vmId"])

    def test_statuses(self):
        for status, rules in (
            (400, "head outside-verb metadata forwarded target duplicate version version-missing-2018 format leaf events nonce"),
            (400, "no-resource no-identity several-identities several-selectors bad-resource no-attestation malformed"),
            (404, "outside version-unknown-2018 version-of-another path no-load-balancer"), (405, "verb"), (408, "slow"),
            (413, "body-size"), (414, "line-size"), (429, "throttled throttled-text"), (431, "headers-size"), (500, "failed"),
        ):
            for rule in rules.split():
                with self.subTest(rule=rule):
                    self.assertEqual(imds.REFUSALS[rule].status, status)


class Patience(unittest.TestCase):
    def test_rows(self):
        for path, connect, answer, total, gone in (
            ("scheduledevents", 2, 120, 120, 120), ("scheduledevents again", 2, 5, 20, 70),
            ("identity/oauth2/token", 2, 10, 20, 70), ("attested/document", 2, 10, 20, 70), ("", 2, 2, 20, 70),
        ):
            self.assertEqual(tuple(imds.PATIENCE[path]), (connect, answer, total, gone))
        self.assertEqual(sorted(imds.RETRIED), [404, 408, 410, 429])
