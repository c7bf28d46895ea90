"""Rooms 1 and 2: the tables, and the pure functions on documents."""

import json
import unittest

import imds

LINUX = imds.complete(imds.VMS["linux"])


def names(node, path=""):
    """Every leaf's path, list indexes as []."""
    if isinstance(node, dict):
        for name in node:
            yield from names(node[name], path + "." + name if path else name)
    elif isinstance(node, list):
        for item in node:
            yield from names(item, path + "[]")
    else:
        yield path


class Versions(unittest.TestCase):
    # The leaves that the first version has, and what each later one added, counted from the documentation.
    FIRST = """compute.location compute.name compute.offer compute.osType compute.platformFaultDomain
        compute.platformUpdateDomain compute.publisher compute.sku compute.version compute.vmId compute.vmSize
        network.interface[].ipv4.ipAddress[].privateIpAddress network.interface[].ipv4.ipAddress[].publicIpAddress
        network.interface[].ipv4.subnet[].address network.interface[].ipv4.subnet[].prefix
        network.interface[].ipv6.ipAddress[].privateIpAddress network.interface[].macAddress""".split()
    ADDED = {
        "2017-08-01": 4, "2017-12-01": 2, "2018-04-02": 5, "2018-10-01": 2, "2019-02-01": 1, "2019-03-11": 1,
        "2019-06-01": 27, "2019-06-04": 2, "2020-06-01": 3, "2020-07-15": 2, "2020-09-01": 1, "2020-10-01": 1,
        "2020-12-01": 2, "2021-01-01": 1, "2021-02-01": 1, "2021-03-01": 3, "2021-05-01": 5, "2021-10-01": 1,
        "2021-11-01": 6, "2021-11-15": 2, "2021-12-13": 1, "2023-07-01": 3, "2023-11-15": 2,
    }
    FULL = {  # a document with something in every list
        "compute": {"publicKeys": [{}], "tagsList": [{}], "storageProfile": {"dataDisks": [{}]}},
        "network": {"interface": [{"ipv4": {"ipAddress": [{}], "subnet": [{}]}, "ipv6": {"ipAddress": [{}]}}]},
    }

    def test_there_are_35_in_order(self):
        self.assertEqual(len(imds.VERSIONS), 35)
        self.assertEqual(list(imds.VERSIONS), sorted(imds.VERSIONS))

    def test_what_each_added(self):
        document, before = imds.complete(self.FULL), set()
        for version in list(imds.VERSIONS)[1:]:
            with self.subTest(version=version):
                now = set(names(imds.view(document, version)))
                if version == imds.FIRST_GA:
                    self.assertEqual(now, set(self.FIRST))
                else:
                    self.assertLessEqual(before, now)  # nothing was ever removed
                    self.assertEqual(len(now - before), self.ADDED.get(version, 0))
                before = now

    def test_rows_that_are_easily_wrong(self):
        for path, since in (
            ("compute/vmScaleSetName", "2017-12-01"), ("compute/plan/product", "2018-04-02"),
            ("compute/storageProfile/osDisk/encryptionSettings/enabled", "2019-06-01"),
            ("compute/storageProfile/osDisk/encryptionSettings/diskEncryptionKey/sourceVault/id", "2021-11-01"),
            ("compute/storageProfile/dataDisks/0/opsPerSecondThrottle", "2021-05-01"),
            ("compute/securityProfile/encryptionAtHost", "2021-11-01"),
            ("compute/storageProfile/imageReference/exactVersion", "2023-07-01"),
            ("compute/physicalZone", "2023-11-15"),
        ):
            with self.subTest(path=path):
                document, versions = imds.complete(self.FULL), list(imds.VERSIONS)
                imds.resolve(imds.view(document, since), path)
                with self.assertRaises(imds.NotFound):
                    imds.resolve(imds.view(document, versions[versions.index(since) - 1]), path)

    def test_preview_has_its_own_shape(self):
        self.assertEqual(imds.format_json(imds.view(LINUX, "2017-03-01")["network"]),
                         '{"interface":[{"ipv4":{"ipaddress":[{"ipaddress":"10.1.2.5","publicip":"203.0.113.5"}],'
                         '"subnet":[{"address":"10.1.2.0","dnsservers":[],"prefix":"24"}]},"ipv6":{"ipaddress":[]},'
                         '"mac":"000D3A36DDED"}]}')
        self.assertEqual(len(imds.view(LINUX, "2017-03-01")["compute"]), 11)

    def test_keys_in_alphabetical_order_and_leaves_strings(self):
        def check(node):
            if isinstance(node, dict):
                self.assertEqual(list(node), sorted(node))
            for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
                check(child)
            if not isinstance(node, (dict, list)):
                self.assertIsInstance(node, str)
        for profile in imds.VMS:
            for version in imds.VERSIONS:
                check(imds.view(imds.complete(imds.VMS[profile]), version))

    def test_extended_only_where_asked_for(self):
        self.assertNotIn("extended", imds.view(LINUX, imds.NEWEST))
        self.assertNotIn("extended", imds.view(LINUX, "2021-05-01", True))
        self.assertEqual(imds.format_json(imds.view(LINUX, "2021-08-01", True)["extended"]),
                         '{"compute":{"hasCustomData":false,"ppsType":"None"}}')


class Complete(unittest.TestCase):
    def test_absent_values_are_empty_and_not_borrowed(self):
        document = imds.complete({})
        self.assertEqual(document["compute"]["name"], "")
        self.assertEqual(document["compute"]["tagsList"], [])
        self.assertEqual(document["compute"]["plan"], {"name": "", "product": "", "publisher": ""})
        self.assertEqual(document["network"], {"interface": []})

    def test_leaves_become_strings(self):
        document = imds.complete({"compute": {"platformFaultDomain": 0, "zone": None, "isVmInStandbyPool": True,
                                              "storageProfile": {"dataDisks": [{"lun": 1}]}}})
        self.assertEqual([document["compute"][name] for name in ("platformFaultDomain", "zone", "isVmInStandbyPool")],
                         ["0", "", "true"])
        self.assertEqual(document["compute"]["storageProfile"]["dataDisks"][0]["lun"], "1")

    def test_unknown_fields_are_served_at_every_version(self):
        document = imds.complete({"compute": {"newThing": {"b": 1, "a": [True]}}, "other": 5})
        for version in imds.VERSIONS:
            shown = imds.view(document, version)
            self.assertEqual((shown["compute"]["newThing"], shown["other"]), ({"a": ["true"], "b": "1"}, "5"))

    def test_a_wrong_shape_is_named(self):
        for document, message in (
            ([], "instance must be an object, not a list"),
            ({"compute": "x"}, "instance.compute must be an object, not 'x'"),
            ({"compute": {"tagsList": {}}}, "instance.compute.tagsList must be a list, not an object"),
            ({"compute": {"name": ["a"]}}, "instance.compute.name must be a single value, not a list"),
            ({"network": {"interface": [{}, 5]}}, "instance.network.interface.1 must be an object, not 5"),
        ):
            with self.subTest(document=document):
                with self.assertRaises(ValueError) as caught:
                    imds.complete(document)
                self.assertEqual(str(caught.exception), message)

    def test_it_leaves_its_argument_alone(self):
        before = json.dumps(imds.VMS["scaleset"])
        imds.complete(imds.VMS["scaleset"])["compute"]["tagsList"].clear()
        self.assertEqual(json.dumps(imds.VMS["scaleset"]), before)

    def test_built_in_vms_have_every_field(self):
        for profile in imds.VMS:
            self.assertEqual(set(imds.complete(imds.VMS[profile])["compute"]), set(LINUX["compute"]))


class Paths(unittest.TestCase):
    def test_resolve(self):
        for path, expected in (
            ("compute/vmId", "13f56399-bd52-4150-9748-7190aae1ff21"),
            ("/compute/vmId/", "13f56399-bd52-4150-9748-7190aae1ff21"),
            ("network/interface/0//macAddress", "000D3A36DDED"),
            ("network/interface/0/ipv4/subnet", [{"address": "10.1.2.0", "prefix": "24"}]),
            ("", LINUX),
        ):
            with self.subTest(path=path):
                self.assertEqual(imds.resolve(LINUX, path), expected)

    def test_what_is_not_there(self):
        for path, advice in (
            ("compute/vmid", "'compute/vmId'"), ("Compute", "'compute'"), ("vmId", "'compute/vmId'"),
            ("compute/vmSise", "'compute/vmSize'"), ("network/interface/1", "'network/interface/0'"),
            ("network/interface/00", "'network/interface/0'"), ("network/interface/-1", "'network/interface/0'"),
            ("compute/vmId/0", "'compute/vmId'"), ("zzzzzzzz", None), ("network/interface/\u0663", "'network/interface/0'"),
        ):
            with self.subTest(path=path):
                with self.assertRaises(imds.NotFound) as caught:
                    imds.resolve(LINUX, path)
                self.assertIsInstance(caught.exception, KeyError)
                self.assertIn("no %r" % path, str(caught.exception))
                self.assertEqual("did you mean" in str(caught.exception), bool(advice))
                self.assertIn("did you mean " + advice if advice else "", str(caught.exception))

    def test_on_a_document_of_ones_own(self):
        document = {"a": [{"b": 1}, "c"], "d": None, "e": False}
        self.assertEqual(imds.resolve(document, "a/0/b"), 1)
        self.assertEqual(imds.format_text(document), "a/\nd\ne")
        self.assertEqual(imds.format_text(document["a"]), "0/\n1")
        self.assertEqual([imds.format_text(document[name]) for name in "de"], ["", "false"])

    def test_format_text(self):
        for node, text in (
            ({"compute": {}, "network": {}}, "compute/\nnetwork/"), ({"b": [], "a": "", "C": "1"}, "C\na\nb/"),
            ([{}, {}], "0/\n1/"), ([], ""), ({}, ""), ("x\r\ny", "x\r\ny"), ("", ""), (5, "5"), (True, "true"),
        ):
            with self.subTest(node=node):
                self.assertEqual(imds.format_text(node), text)

    def test_format_json(self):
        self.assertEqual(imds.format_json({"a": ["\u00e9", ""], "b": {}}), '{"a":["\u00e9",""],"b":{}}')


class Changes(unittest.TestCase):
    def test_merge_patch_examples_of_rfc_7386(self):
        for target, patch, result in (
            ({"a": "b"}, {"a": "c"}, {"a": "c"}), ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
            ({"a": "b"}, {"a": None}, {}), ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
            ({"a": ["b"]}, {"a": "c"}, {"a": "c"}), ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
            ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
            ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}), (["a", "b"], ["c", "d"], ["c", "d"]),
            ({"a": "b"}, ["c"], ["c"]), ({"a": "foo"}, None, None), ({"a": "foo"}, "bar", "bar"),
            ({"e": None}, {"a": 1}, {"e": None, "a": 1}), ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
            ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
        ):
            with self.subTest(target=target, patch=patch):
                before = json.dumps([target, patch])
                self.assertEqual(imds.merge_patch(target, patch), result)
                self.assertEqual(json.dumps([target, patch]), before)

    def test_assign(self):
        document = imds.complete(imds.VMS["linux"])
        for name, text, path, value in (
            ("compute.vmSize", "Standard_D4s_v5", "compute/vmSize", "Standard_D4s_v5"),
            ("compute/zone", "", "compute/zone", ""),
            ("network.interface.0.macAddress", "0011", "network/interface/0/macAddress", "0011"),
            ("compute.tagsList", '[{"name":"a","value":"b"}]', "compute/tagsList/0/value", "b"),
        ):
            with self.subTest(name=name):
                imds.assign(document, name, text)
                self.assertEqual(imds.resolve(document, path), value)

    def test_assign_refuses(self):
        for name, text, message in (
            ("compute.vmsize", "x", "did you mean compute.vmSize?"), ("nonsense", "x", "there is no 'nonsense'"),
            ("compute.plan", "x", "compute.plan is an object"), ("compute.tagsList", "{}", "tagsList is a list"),
        ):
            with self.subTest(name=name):
                with self.assertRaises(ValueError) as caught:
                    imds.assign(imds.complete({}), name, text)
                self.assertIn(message, str(caught.exception))


if __name__ == "__main__":
    unittest.main()
