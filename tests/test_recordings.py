"""What the real service was seen to send, fact by fact: names and their order by version, values, bodies, sizes."""

import base64
import json
import unittest

import imds
from tests.support import HTML, JSON, OK, TOKEN, VAULT, XML, Steps, ask, claims, document, leaves, page, service

NETWORK = ("network{interface[{ipv4{ipAddress[{privateIpAddress publicIpAddress}] subnet[{address prefix}]} "
           "ipv6{ipAddress[]} macAddress}]}")
EVENTS = "/metadata/scheduledevents?api-version="


def outline(node):
    """The names in a document, in their order: {a{b} c[{d}]}."""
    if isinstance(node, dict):
        return "{%s}" % " ".join(name + outline(child) for name, child in node.items())
    return "[%s]" % (outline(node[0]) if node else "") if isinstance(node, list) else ""


class Names(unittest.TestCase):
    """One VM or more was seen at each of these versions; of the lists, what an item was seen to hold."""

    IMAGE = "imageReference{id offer publisher sku version}"
    DISK = ("osDisk{caching createOption diskSizeGB encryptionSettings{enabled} image{uri} managedDisk{id storageAccountType} "
            "name osType vhd{uri} writeAcceleratorEnabled}")
    TEMPORARY = DISK.replace("diskSizeGB", "diffDiskSettings{option} diskSizeGB")
    KEYS = "encryptionSettings{diskEncryptionKey{secretUrl sourceVault{id}} enabled keyEncryptionKey{keyUrl sourceVault{id}}}"
    DATA_DISK = ("[{caching createOption diskSizeGB image{uri} lun managedDisk{id storageAccountType} name vhd{uri} "
                 "writeAcceleratorEnabled}]")
    LATER = TEMPORARY.replace("encryptionSettings{enabled}", KEYS)
    ROWS = [  # api-version, and the names below compute
        ("2017-04-02", "location name offer osType platformFaultDomain platformUpdateDomain publisher sku version vmId vmSize"),
        ("2017-08-01", "location name offer osType placementGroupId platformFaultDomain platformUpdateDomain publisher "
                       "resourceGroupName sku subscriptionId tags version vmId vmSize"),
        ("2017-12-01", "location name offer osType placementGroupId platformFaultDomain platformUpdateDomain publisher "
                       "resourceGroupName sku subscriptionId tags version vmId vmScaleSetName vmSize zone"),
        ("2019-02-01", "azEnvironment customData location name offer osType placementGroupId plan{name product publisher} "
                       "platformFaultDomain platformUpdateDomain provider publicKeys[{keyData path}] publisher resourceGroupName "
                       "sku subscriptionId tags version vmId vmScaleSetName vmSize zone"),
        ("2019-03-11", "azEnvironment customData location name offer osType placementGroupId plan{name product publisher} "
                       "platformFaultDomain platformUpdateDomain provider publicKeys[{keyData path}] publisher resourceGroupName "
                       "resourceId sku subscriptionId tags version vmId vmScaleSetName vmSize zone"),
        ("2019-06-01", "azEnvironment customData location name offer osType placementGroupId plan{name product publisher} "
                       "platformFaultDomain platformUpdateDomain provider publicKeys[{keyData path}] publisher resourceGroupName "
                       "resourceId sku storageProfile{dataDisks" + DATA_DISK + " " + IMAGE + " " + DISK + "} subscriptionId tags "
                       "version vmId vmScaleSetName vmSize zone"),
        ("2019-08-15", "azEnvironment customData location name offer osType placementGroupId plan{name product publisher} "
                       "platformFaultDomain platformUpdateDomain provider publicKeys[{keyData path}] publisher resourceGroupName "
                       "resourceId sku storageProfile{dataDisks" + DATA_DISK + " " + IMAGE + " " + TEMPORARY + "} subscriptionId "
                       "tags tagsList[{name value}] version vmId vmScaleSetName vmSize zone"),
        ("2020-06-01", "azEnvironment customData isHostCompatibilityLayerVm location name offer osType placementGroupId "
                       "plan{name product publisher} platformFaultDomain platformUpdateDomain provider publicKeys[{keyData path}] "
                       "publisher resourceGroupName resourceId securityProfile{secureBootEnabled virtualTpmEnabled} sku "
                       "storageProfile{dataDisks" + DATA_DISK + " " + IMAGE + " " + TEMPORARY + "} subscriptionId tags "
                       "tagsList[{name value}] version vmId vmScaleSetName vmSize zone"),
        ("2020-09-01", "azEnvironment customData isHostCompatibilityLayerVm licenseType location name offer "
                       "osProfile{adminUsername computerName} osType placementGroupId plan{name product publisher} "
                       "platformFaultDomain platformUpdateDomain provider publicKeys[{keyData path}] publisher resourceGroupName "
                       "resourceId securityProfile{secureBootEnabled virtualTpmEnabled} sku storageProfile{dataDisks" + DATA_DISK
                       + " " + IMAGE + " " + TEMPORARY + "} subscriptionId tags tagsList[{name value}] version vmId "
                       "vmScaleSetName vmSize zone"),
        ("2021-02-01", "azEnvironment customData evictionPolicy isHostCompatibilityLayerVm licenseType location name offer "
                       "osProfile{adminUsername computerName disablePasswordAuthentication} osType placementGroupId "
                       "plan{name product publisher} platformFaultDomain platformUpdateDomain priority provider "
                       "publicKeys[{keyData path}] publisher resourceGroupName resourceId "
                       "securityProfile{secureBootEnabled virtualTpmEnabled} sku storageProfile{dataDisks" + DATA_DISK + " "
                       + IMAGE + " " + TEMPORARY + " resourceDisk{size}} subscriptionId tags tagsList[{name value}] userData "
                       "version vmId vmScaleSetName vmSize zone"),
        ("2021-10-01", "azEnvironment customData evictionPolicy extendedLocation{name type} isHostCompatibilityLayerVm "
                       "licenseType location name offer osProfile{adminUsername computerName disablePasswordAuthentication} "
                       "osType placementGroupId plan{name product publisher} platformFaultDomain platformSubFaultDomain "
                       "platformUpdateDomain priority provider publicKeys[{keyData path}] publisher resourceGroupName resourceId "
                       "securityProfile{secureBootEnabled virtualTpmEnabled} sku storageProfile{dataDisks[] " + IMAGE + " "
                       + TEMPORARY + " resourceDisk{size}} subscriptionId tags tagsList[{name value}] userData version "
                       "virtualMachineScaleSet{id} vmId vmScaleSetName vmSize zone"),
        ("2021-12-13", "additionalCapabilities{hibernationEnabled} azEnvironment customData evictionPolicy "
                       "extendedLocation{name type} host{id} hostGroup{id} isHostCompatibilityLayerVm licenseType location name "
                       "offer osProfile{adminUsername computerName disablePasswordAuthentication} osType placementGroupId "
                       "plan{name product publisher} platformFaultDomain platformSubFaultDomain platformUpdateDomain priority "
                       "provider publicKeys[{keyData path}] publisher resourceGroupName resourceId "
                       "securityProfile{encryptionAtHost secureBootEnabled securityType virtualTpmEnabled} sku "
                       "storageProfile{dataDisks[] " + IMAGE + " " + LATER + " resourceDisk{size}} subscriptionId tags "
                       "tagsList[{name value}] userData version virtualMachineScaleSet{id} vmId vmScaleSetName vmSize zone"),
        # The one VM seen at 2023-11-15 had no physicalZone, which is documented.
        ("2023-11-15", "additionalCapabilities{hibernationEnabled} azEnvironment customData evictionPolicy "
                       "extendedLocation{name type} host{id} hostGroup{id} isHostCompatibilityLayerVm isVmInStandbyPool "
                       "licenseType location name offer osProfile{adminUsername computerName disablePasswordAuthentication} "
                       "osType physicalZone placementGroupId plan{name product publisher} platformFaultDomain "
                       "platformSubFaultDomain platformUpdateDomain priority provider publicKeys[{keyData path}] publisher "
                       "resourceGroupName resourceId "
                       "securityProfile{encryptionAtHost secureBootEnabled securityType virtualTpmEnabled} sku "
                       "storageProfile{dataDisks[] imageReference{communityGalleryImageId exactVersion id offer publisher "
                       "sharedGalleryImageId sku version} " + LATER + " resourceDisk{size}} subscriptionId tags "
                       "tagsList[{name value}] userData version virtualMachineScaleSet{id} vmId vmScaleSetName vmSize zone"),
    ]

    def test_rows(self):
        for version, names in self.ROWS:
            with self.subTest(version=version):
                compute = {"publicKeys": [{}], "tagsList": [{}], "storageProfile": {"dataDisks": [{}] * (version < "2021-05-01")}}
                one = service({"compute": compute, "network": {"interface": [{"ipv4": {"ipAddress": [{}], "subnet": [{}]}}]}})
                self.assertEqual(outline(document("/metadata/instance?api-version=" + version, one)),
                                 "{compute{%s} %s}" % (names, NETWORK))

    def test_extended(self):
        self.assertEqual(outline(document("/metadata/instance/extended?api-version=2023-11-15&extended=true")),
                         "{compute{hasCustomData ppsType}}")
        self.assertIn('{"compute":{"hasCustomData":false,"ppsType":"None"}}',
                      page("/metadata/instance?api-version=2023-11-15&extended=true"))


class Values(unittest.TestCase):
    def test_what_a_flag_a_size_and_nothing_look_like(self):
        """Seen at every VM of 30, in documents of our own that say nothing of it."""
        seen = dict(leaves(document("/metadata/instance?api-version=2021-12-13", instance={"compute": {
            "storageProfile": {"dataDisks": [{}]}}})))
        disk = "compute.storageProfile.osDisk."
        for path, value in (
            ("compute.isHostCompatibilityLayerVm", "false"), ("compute.securityProfile.encryptionAtHost", "false"),
            ("compute.securityProfile.secureBootEnabled", "false"), ("compute.securityProfile.virtualTpmEnabled", "false"),
            (disk + "writeAcceleratorEnabled", "false"), (disk + "encryptionSettings.enabled", "false"),
            ("compute.storageProfile.dataDisks[].writeAcceleratorEnabled", "false"), ("compute.customData", ""),
            ("compute.additionalCapabilities.hibernationEnabled", "false"), ("compute.evictionPolicy", ""),
            ("compute.priority", ""), ("compute.licenseType", ""), ("compute.plan.name", ""), ("compute.userData", ""),
            ("compute.platformSubFaultDomain", ""), ("compute.host.id", ""), ("compute.extendedLocation.type", ""),
            (disk + "diffDiskSettings.option", ""), (disk + "vhd.uri", ""), ("compute.securityProfile.securityType", ""),
            (disk + "encryptionSettings.diskEncryptionKey.secretUrl", ""), ("compute.storageProfile.resourceDisk.size", "0"),
            ("compute.osProfile.disablePasswordAuthentication", ""),  # of Windows, and of an attached disk
        ):
            with self.subTest(path=path):
                self.assertEqual(seen[path], value)

    def test_nothing_that_was_said_stays_nothing(self):
        """Azure Stack Hub says "" where Azure says "false" or "0"."""
        compute = {"isHostCompatibilityLayerVm": "", "securityProfile": {"secureBootEnabled": "", "virtualTpmEnabled": ""},
                   "storageProfile": {"resourceDisk": {"size": ""}}}
        seen = dict(leaves(document("/metadata/instance?api-version=2021-05-01", instance={"compute": compute})))
        for path in ("compute.isHostCompatibilityLayerVm", "compute.securityProfile.secureBootEnabled",
                     "compute.securityProfile.virtualTpmEnabled", "compute.storageProfile.resourceDisk.size"):
            self.assertEqual(seen[path], "", path)

    def test_whole_documents_come_back_byte_for_byte(self):
        windows = ('{"compute":{"location":"westus2","name":"%s","offer":"WindowsServerSemiAnnual","osType":"Windows",'
                   '"platformFaultDomain":"%d","platformUpdateDomain":"%d","publisher":"MicrosoftWindowsServer","sku":'
                   '"Datacenter-Core-1709-with-Containers-smalldisk","version":"1709.0.20171219","vmId":"%s","vmSize":'
                   '"Standard_D2s_v3"},"network":{"interface":[{"ipv4":{"ipAddress":[{"privateIpAddress":"10.0.0.%d",'
                   '"publicIpAddress":""}],"subnet":[{"address":"10.0.0.0","prefix":"16"}]},"ipv6":{"ipAddress":[]},'
                   '"macAddress":"%s"}]}}')
        for version, size, body in (
            ("2017-04-02", 564, windows % ("wp35723900-vmss_1", 1, 1, "a7c7a8a7-7cdb-4c49-a3a5-d67dc6aa2050", 5, "000D3AF9AECA")),
            ("2017-04-02", 564, windows % ("wp33555900-vmss_0", 0, 0, "0629a204-4436-42d1-99cc-0be9c55720a7", 4, "000D3AFD3EED")),
            ("2017-08-01", 614, '{"compute":{"location":"westeurope","name":"myvm-az-1","offer":"UbuntuServer","osType":"Linux",'
             '"placementGroupId":"","platformFaultDomain":"0","platformUpdateDomain":"0","publisher":"Canonical",'
             '"resourceGroupName":"iaclab","sku":"16.04.0-LTS","subscriptionId":"e7da9914-9b05-4891-893c-546cb7b0422e","tags":"",'
             '"version":"16.04.201611150","vmId":"8b9edb1b-ed22-4e0f-bee3-9e880e46258e","vmSize":"Standard_D2_v2"},"network":'
             '{"interface":[{"ipv4":{"ipAddress":[{"privateIpAddress":"10.1.1.5","publicIpAddress":""}],"subnet":[{"address":'
             '"10.1.1.0","prefix":"24"}]},"ipv6":{"ipAddress":[]},"macAddress":"000D3A2589D0"}]}}'),
        ):
            self.assertEqual(len(body), size)
            self.assertEqual(page("/metadata/instance?api-version=" + version, instance=json.loads(body)), body)

    def test_addresses(self):
        for interface, body in (
            ({"ipv4": {"ipAddress": [{"privateIpAddress": "172.18.1.10", "publicIpAddress": ""}],
                       "subnet": [{"address": "172.18.1.0", "prefix": "24"}]},
              "ipv6": {"ipAddress": [{"privateIpAddress": "fd00::10"}]}, "macAddress": "000D3AD631EE"},
             '[{"ipv4":{"ipAddress":[{"privateIpAddress":"172.18.1.10","publicIpAddress":""}],"subnet":[{"address":"172.18.1.0",'
             '"prefix":"24"}]},"ipv6":{"ipAddress":[{"privateIpAddress":"fd00::10"}]},"macAddress":"000D3AD631EE"}]'),
            ({"ipv6": {"ipAddress": [{"privateIpAddress": "fd00::10", "publicIpAddress": ""}]}},  # Talos saw it so, too
             '[{"ipv4":{"ipAddress":[],"subnet":[]},"ipv6":{"ipAddress":[{"privateIpAddress":"fd00::10","publicIpAddress":""}]},'
             '"macAddress":""}]'),
        ):
            one = service({"network": {"interface": [interface]}})
            self.assertEqual(page("/metadata/instance/network/interface?api-version=2021-12-13", one), body)

    def test_tags_with_colons(self):
        given = [("aks-managed-coordination", "true"), ("aks-managed-orchestrator", "Kubernetes:1.25.5"),
                 ("architecture", "Hub&Spoke")]
        one = service({"compute": {"tagsList": [{"name": name, "value": value} for name, value in given]}})
        compute = document("/metadata/instance/compute?api-version=2021-02-01", one)
        self.assertEqual(compute["tags"],
                         "aks-managed-coordination:true;aks-managed-orchestrator:Kubernetes:1.25.5;architecture:Hub&Spoke")
        one = service({"compute": {
            "tags": "deployment_end:2025-10-08T13:52:29.401086Z;deployment_start:2025-10-08T13:51:50.291058Z"}})
        self.assertEqual(document("/metadata/instance/compute/tagsList?api-version=2021-02-01", one), [
            {"name": "deployment_end", "value": "2025-10-08T13:52:29.401086Z"},
            {"name": "deployment_start", "value": "2025-10-08T13:51:50.291058Z"}])

    def test_text(self):
        one = service({"network": {"interface": [{"ipv4": {"ipAddress": [{"publicIpAddress": "52.168.72.115"}]}}]},
                       "compute": {"publicKeys": [{"keyData": "ssh-rsa AAAA\r\nBBBB\r\n"}]}})
        for path, text in (("/network/interface/0/ipv4/ipAddress/0/publicIpAddress", "52.168.72.115"), ("", "compute/\nnetwork/"),
                           ("/network/interface", "0/")):  # of two bytes, as a client counted
            self.assertEqual(page("/metadata/instance%s?api-version=2017-04-02&format=text" % path, one), text)
        path = "/metadata/instance/compute/publicKeys/0/keyData?api-version=2021-02-01&format=text"
        self.assertEqual(page(path, one), "ssh-rsa AAAA\r\nBBBB\r\n")

    def test_what_built_in_vms_have_of_real_ones(self):
        compute = imds.make_vm("scaleset", number=2)["compute"]
        self.assertEqual((compute["name"], compute["osProfile"]["computerName"]), ("web_2", "web000002"))
        self.assertTrue(compute["resourceId"].endswith("/virtualMachineScaleSets/web/virtualMachines/2"))
        self.assertIn("/resourceGroups/WEB/", compute["storageProfile"]["osDisk"]["managedDisk"]["id"])  # upper case there
        for profile in ("linux", "windows", "scaleset"):
            compute = imds.make_vm(profile)["compute"]
            self.assertEqual((compute["azEnvironment"], compute["provider"], compute["priority"]),
                             ("AzurePublicCloud", "Microsoft.Compute", ""))


class Refusals(unittest.TestCase):
    def test_rows(self):
        identity = '{"error":"invalid_request","error_description":"%s"}'
        balancer = ('{ "error": "No load balancer metadata is found. Please check if your VM is using any non-basic SKU load '
                    'balancer and retry later." }')
        for verb, target, headers, settings, status, content_type, size, body in (
            ("PUT", "/latest/api/token", {}, {}, 400, XML, 322, None), ("HEAD", "/", {}, {}, 400, XML, 323, None),
            ("HEAD", "/metadata/instance/compute", {}, {}, 400, XML, 323, None),
            ("GET", "/doesnotexist", {}, {}, 404, HTML, 1245, None),
            ("GET", "/metadata/instance/compute?api-version=2021-01-01", {}, {}, 400, JSON, 68,
             '{ "error": "Bad request: . Required metadata header not specified" }'),
            ("GET", "/metadata/identity/oauth2/token?resource=https%3A%2F%2Fvault.azure.net&api-version=2018-02-01", {}, {}, 400,
             JSON, 88, identity % "Required metadata header not specified"),
            ("GET", TOKEN + VAULT, OK, {"identities": []}, 400, JSON, 68, identity % "Identity not found"),
            ("GET", TOKEN + VAULT, OK, {"identities": ["user:a", "user:b"]}, 400, JSON, 168, identity % (
                "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the token "
                "request")),
            ("POST", "/metadata/identity/issuecredential?cred-api-version=2.0", OK, {}, 400, JSON, None,
             identity % "Attestation Token is missing / empty in the issue credential request"),
            ("GET", "/metadata/identity?api-version=2021-12-13", OK, {}, 404, JSON, 21, '{"error":"Not Found"}'),
            ("GET", "/metadata/instance/compute/identity?api-version=2018-04-02&format=text", OK, {}, 404, JSON, 24,
             '{ "error": "Not found" }'),
            ("GET", EVENTS + "2021-12-13", OK, {}, 404, JSON, 24, '{ "error": "Not found" }'),
            ("GET", "/metadata/loadbalancer?api-version=2021-12-13&format=json", OK, {}, 404, JSON, None, balancer),
            ("GET", "/metadata/loadbalancer?api-version=2023-07-01", OK, {}, 404, JSON, None, balancer),
            ("GET", "/metadata", OK, {}, 400, JSON, None,
             '{"error":"Bad request. api-version is invalid or was not specified in the '
             'request. For more information refer to aka.ms/azureimds","newest-versions":["2025-04-07","2024-07-17","2024-03-15"]}'),
            ("GET", "/metadata/instance?api-version=2017-07-01", OK, {"as_of": "2018"}, 404, JSON, None,
             '{ "error": "Not found. Invalid version requested" }'),
            ("GET", "/metadata/./identity/../identity/oauth2/token?api-version=2018-02-01" + VAULT, OK, {}, 404, JSON, None,
             None),
        ):
            with self.subTest(verb=verb, target=target, settings=settings):
                response = ask(target, headers, verb, of=service(**settings))
                self.assertEqual((response.status, dict(response.headers)["Content-Type"]), (status, content_type))
                if size is not None:
                    self.assertEqual(len(response.body), size)
                if body is not None:
                    self.assertEqual(response.body.decode(), body)

    def test_the_identity_service_throttled(self):
        one = service(rate_limit=5)
        response = [ask(TOKEN + VAULT, of=one) for _ in range(6)][-1]
        self.assertEqual((response.status, len(response.body), "Retry-After" in dict(response.headers)), (429, 90, False))

    def test_headers_of_2026(self):
        headers = ask("/metadata/instance?api-version=2021-02-01", of=service(clock=Steps(1770462286))).headers
        self.assertEqual([name for name, _ in headers], ["Content-Type", "Server", "x-ms-request-id", "Date", "Content-Length"])
        self.assertEqual([value for name, value in headers if name in ("Content-Type", "Server", "Date")],
                         ["application/json; charset=utf-8", "IMDS/150.870.65.1854", "Sat, 07 Feb 2026 11:04:46 GMT"])


class Events(unittest.TestCase):
    def test_rows(self):
        old = ('{"EventId":"%s","EventStatus":"%s","EventType":"%s","ResourceType":"VirtualMachine","Resources":["%s"],'
               '"NotBefore":"%s"')
        new = ',"Description":"%s","EventSource":"%s","DurationInSeconds":%d}'
        host = "Host server is undergoing maintenance."
        user = "Virtual machine is going to be restarted as requested by authorized user."
        for version, incarnation, event in (
            ("2017-11-01", 1, old % ("77213DA4-3EBD-4C87-970D-949767E6DB59", "Scheduled", "Reboot", "dustin-dw-testing",
                                     "Thu, 05 Dec 2019 00:31:50 GMT") + "}"),
            ("2017-11-01", 1, old % ("72E160B5-6F75-40FA-BD4C-0C7FA2318A51", "Scheduled", "Redeploy", "VM-SE-Server02",
                                     "Thu, 17 Jan 2019 05:57:06 GMT") + "}"),
            ("2019-01-01", 279,
             old % ("xxx-xxx-xxx-xxx-xxx", "Scheduled", "Freeze", "xxxx", "Thu, 26 Sep 2019 15:15:21 GMT") + "}"),
            ("2019-08-01", 213, old % ("FA298C74-AE95-4154-8EBF-303EED382DB6", "Scheduled", "Reboot", "aks-vmss_39",
                                       "Tue, 30 Mar 2021 13:39:24 GMT") + ',"Description":"%s","EventSource":"User"}' % user),
            ("2020-07-01", 32, old % ("3474C1DD-0917-49F4-85F7-84B9E366719B", "Started", "Freeze", "regular-node-vmss_6", "")
             + new % (host, "Platform", 6)),
            ("2020-07-01", 2, old % ("4CAEA225-A741-474D-A72E-428C86FCD853", "Scheduled", "Reboot", "flatcar-vm1",
                                     "Thu, 22 Jul 2021 04:50:17 GMT") + new % ("", "User", -1)),
            ("2020-07-01", 1, old % ("C1BF8322-4CBF-4FC4-9C45-B40CF3106D0E", "Scheduled", "Preempt", "vm-spot",
                                     "Tue, 09 Aug 2022 17:07:32 GMT") + new % ("", "Platform", -1)),
        ):
            body = '{"DocumentIncarnation":%d,"Events":[%s]}' % (incarnation, event)
            with self.subTest(body=body):
                self.assertEqual(page(EVENTS + version, instance={"instance": {}, "scheduledevents": json.loads(body)}), body)
        self.assertEqual(page(EVENTS + "2020-07-01"), '{"DocumentIncarnation":1,"Events":[]}')


class Identity(unittest.TestCase):
    def test_a_token(self):
        """Seen of a system-assigned and of a user-assigned identity, 2021 to 2024."""
        one = service(identities=["user:app,client_id=21493e25-fc65-4f45-bb47-45dbf2449cab"], clock=Steps(1677855081))
        target = ("/metadata/identity/oauth2/token?api-version=2021-12-13&resource=https%3A%2F%2Fmanagement.azure.com%2F"
                  "&client_id=21493e25-fc65-4f45-bb47-45dbf2449cab")
        answer = document(target, one)
        self.assertEqual(claims(answer.pop("access_token"))[1]["aud"], "https://management.azure.com/")
        self.assertEqual(imds.format_json(answer), (
            '{"client_id":"21493e25-fc65-4f45-bb47-45dbf2449cab","expires_in":"86400","expires_on":"1677941481",'
            '"ext_expires_in":"86399","not_before":"1677854781","resource":"https://management.azure.com/","token_type":"Bearer"}'))
        self.assertTrue(page(target, one).startswith('{"access_token":"eyJ0eXAi'))


class LoadBalancer(unittest.TestCase):
    def test_rows(self):
        for body in (
            '{"loadbalancer":{"publicIpAddresses":[{"frontendIpAddress":"172.184.192.212","privateIpAddress":"10.0.0.4"}],'
            '"inboundRules":[],"outboundRules":[]}}',
            '{"loadbalancer":{"publicIpAddresses":[{"frontendIpAddress":"[2603:1020:10:5::34]","privateIpAddress":"[fd00::10]"}],'
            '"inboundRules":[{"frontendIpAddress":"172.16.136.5","protocol":"Tcp","frontendPort":6443,"backendPort":6443,'
            '"privateIpAddress":"172.18.1.10"}],"outboundRules":[]}}',
        ):
            one = service({"instance": {}, "loadbalancer": json.loads(body)})
            self.assertEqual(page("/metadata/loadbalancer?api-version=2021-12-13&format=json", one), body)


class Attested(unittest.TestCase):
    def test_contents(self):
        plan = '"plan":{"name":"","product":"","publisher":""}'
        for version, now, compute, content in (
            ("2018-10-01", 1582296971, {"vmId": "e01fcd50-213b-4559-8fdf-d98c0086cde4"},
             '{"nonce":"20200221-205611",%s,"timeStamp":'
             '{"createdOn":"02/21/20 14:56:11 -0000","expiresOn":"02/21/20 20:56:11 -0000"},'
             '"vmId":"e01fcd50-213b-4559-8fdf-d98c0086cde4"}'),
            ("2019-08-15", 1582296802, {"vmId": "e01fcd50", "subscriptionId": "ce73a2b0"},
             '{"nonce":"20200221-205322",%s,"subscriptionId":'
             '"ce73a2b0","timeStamp":{"createdOn":"02/21/20 14:53:22 -0000","expiresOn":"02/21/20 20:53:22 -0000"},'
             '"vmId":"e01fcd50"}'),
            ("2018-10-01", 1609768534, {"vmId": "f904ece8"}, '{"nonce":"20210104-195534",%s,"timeStamp":'
             '{"createdOn":"01/04/21 13:55:34 -0000","expiresOn":"01/04/21 19:55:34 -0000"},"vmId":"f904ece8"}'),
            ("2021-12-13", 1696249991, {"vmId": "6277b885", "subscriptionId": "6a73742d", "sku": "84sapha-gen2"},
             '{"licenseType":"","nonce":"20231002-183311",%s,"sku":"84sapha-gen2","subscriptionId":"6a73742d","timeStamp":'
             '{"createdOn":"10/02/23 12:33:11 -0000","expiresOn":"10/02/23 18:33:11 -0000"},"vmId":"6277b885"}'),
        ):
            with self.subTest(version=version, now=now):
                answer = document("/metadata/attested/document?api-version=" + version,
                                  service({"compute": compute}, clock=Steps(now)))
                self.assertEqual(list(answer), ["encoding", "signature"])
                self.assertNotIn("\n", answer["signature"])
                self.assertEqual(imds.signed_content(base64.b64decode(answer["signature"])).decode(), content % plan)

    def test_the_head_of_a_recorded_signature_is_read(self):
        """SignedData of 2021: the outer form, the digest's algorithm, and the content, which stands inside."""
        head = bytes.fromhex("30820a5906092a864886f70d010702a0820a4a30820a46020101310f300d06092a864886f70d01010b0500"
                             "3081e306092a864886f70d010701a081d50481d2")
        data = imds.signed_data(b"x" * 210, b"s" * 256, imds.service_certificate(
            ("metadata.azure.com",), imds.TEST_ISSUER_NAME, 1609459200, "http://localhost"))
        self.assertEqual(data[4:15], head[4:15])  # SignedData
        self.assertEqual(data[23:43], head[23:43])  # version 1; sha256WithRSAEncryption where a digest's name should be
        self.assertEqual(data[43:62], head[43:62])  # Data, in an OCTET STRING


class Sizes(unittest.TestCase):
    def test_of_refusals(self):
        for rule, size in (("metadata", 68), ("no-identity", 68), ("several-identities", 168), ("head", 323)):
            response = service().refuse(rule, imds.Request("HEAD", "/metadata/instance", {}))
            self.assertEqual(len(response.body), size)
        self.assertEqual(len(imds.GONE_BODY), 313)
