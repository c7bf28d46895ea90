"""Room 2: the exceptions, and the pure functions on documents."""

import json
import pickle
import unittest
from unittest import mock

import imds

LINUX = imds.make_vm("linux")


class NewVersion(unittest.TestCase):
    def test_it_is_one_row(self):
        rows = dict(imds.GA_VERSIONS, **{"2099-01-01": "compute{newThing:word newFlag:word=false}"})
        self.addCleanup(imds.template.cache_clear)
        with mock.patch.object(imds, "GA_VERSIONS", rows):
            imds.template.cache_clear()
            vm = imds.make_vm()
            self.assertEqual((vm["compute"]["newThing"], vm["compute"]["newFlag"]), ("", "false"))
            vm = imds.assign(vm, "compute.newThing", "x")
            self.assertEqual(imds.redact(vm)["instance"]["compute"]["newThing"], "value1")
            self.assertEqual(imds.since("compute/newThing"), "2099-01-01")


class Json(unittest.TestCase):
    def test_indented_for_people_unless_it_is_deep(self):
        deep = json.loads("[" * 800 + "1" + "]" * 800)
        self.assertEqual(imds.format_json(deep, 2), json.dumps(deep))
        self.assertEqual(imds.format_json([[1]], 2), "[\n  [\n    1\n  ]\n]")

    def test_how_many(self):
        for text, whole in (("[" + "[]," * 199998 + "[]]", True), ("[" + "{}," * 199999 + "{}]", False),
                            ('["' + "[" * 200000 + '"]', False)):
            if whole:
                self.assertEqual(len(imds.load_json(text.encode())), 199999)
            else:
                self.assertRaisesRegex(ValueError, "200000 in all", imds.load_json, text.encode())

    def test_levels(self):
        for text, whole in (("[" * 910 + "]" * 910, True), ("[" * 911 + "]" * 911, False), ("[" * 100000, False),
                            ('{"a":' * 911 + "1" + "}" * 911, False), ("[%s]" % ",".join(["{}"] * 2000), True),
                            (json.dumps(["[{" * 2000, '\\"[' * 1000, "\\"]), True), ('["' + "[" * 2000, None)):
            with self.subTest(text=text[:20]):
                if whole:
                    self.assertEqual(imds.load_json(text.encode()), json.loads(text))
                else:
                    with self.assertRaisesRegex(ValueError, "more than 910" if whole is False else ""):
                        imds.load_json(text.encode())


class Errors(unittest.TestCase):
    def test_what_they_are_and_carry(self):
        for kind, code, base in ((imds.Error, 1, Exception), (imds.NotFound, 1, KeyError), (imds.Refused, 1, imds.Error),
                                 (imds.Unreachable, 3, OSError), (imds.Unavailable, 4, imds.Error),
                                 (imds.NotIMDS, 5, imds.Error)):
            with self.subTest(kind=kind):
                error = kind("a\r\n  b\x1b[31m", 418, "body", "http://x/")
                self.assertIsInstance(error, imds.Error)
                self.assertIsInstance(error, base)
                self.assertEqual(kind.exit_code, code)
                self.assertEqual(str(error), "a b?[31m")  # one line that no terminal obeys
                self.assertEqual((error.message, error.status, error.body, error.url), ("a b?[31m", 418, "body", "http://x/"))
                again = pickle.loads(pickle.dumps(error))
                self.assertEqual((type(again), str(again), again.status), (kind, "a b?[31m", 418))
                self.assertEqual((kind("x").status, kind("x").body, kind("x").url), (None, None, None))

    def test_one_line(self):
        for text, printed in (("a\tb\n c", "a b c"), ("\x07\u202e", "??"), ("caf\u00e9 \u2603", "caf\u00e9 \u2603"), ("", "")):
            self.assertEqual(imds.one_line(text), printed)


class View(unittest.TestCase):
    def test_preview_has_its_own_shape(self):
        self.assertEqual(imds.format_json(imds.view(LINUX, "2017-03-01")["network"]),
                         '{"interface":[{"ipv4":{"ipaddress":[{"ipaddress":"10.1.2.5","publicip":"203.0.113.5"}],'
                         '"subnet":[{"address":"10.1.2.0","dnsservers":[],"prefix":"24"}]},"ipv6":{"ipaddress":[]},'
                         '"mac":"000D3A36DDED"}]}')
        self.assertEqual(len(imds.view(LINUX, "2017-03-01")["compute"]), 11)
        own = {"network": {"interface": [{"mac": "000D3A36DDED", "ipv4": {"ipaddress": [{"ipaddress": "10.0.0.5"}]}}]}}
        interface, = imds.view(imds.complete(own), "2017-03-01")["network"]["interface"]  # it came in that shape
        self.assertEqual((interface["mac"], interface["ipv4"]["ipaddress"][0]["ipaddress"]), ("000D3A36DDED", "10.0.0.5"))

    def test_keys_in_alphabetical_order_and_leaves_strings(self):
        def check(node):
            if isinstance(node, dict):
                self.assertEqual(list(node), sorted(node))
            for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
                check(child)
            if not isinstance(node, (dict, list)):
                self.assertIsInstance(node, str)
        for profile in ("linux", "windows", "scaleset"):
            for version in list(imds.VERSIONS) + list(imds.UNLISTED_VERSIONS):
                check(imds.view(imds.make_vm(profile), version))

    def test_extended_only_where_asked_for(self):
        self.assertNotIn("extended", imds.view(LINUX, "2025-04-07"))
        self.assertNotIn("extended", imds.view(LINUX, "2021-05-01", True))
        self.assertEqual(imds.format_json(imds.view(LINUX, "2021-08-01", True)["extended"]),
                         '{"compute":{"hasCustomData":false,"ppsType":"None"}}')

    def test_a_view_is_no_part_of_the_document(self):
        before = json.dumps(LINUX)
        seen = imds.view(LINUX, "2025-04-07")
        seen["compute"]["tagsList"].append({})
        seen["network"]["interface"][0]["ipv4"].clear()
        self.assertEqual(json.dumps(LINUX), before)


class Complete(unittest.TestCase):
    def test_absent_values_are_empty_and_not_borrowed(self):
        document = imds.complete({})
        self.assertEqual(document["compute"]["name"], "")
        self.assertEqual(document["compute"]["tagsList"], [])
        self.assertEqual(document["compute"]["plan"], {"name": "", "product": "", "publisher": ""})
        self.assertEqual(document["network"], {"interface": []})

    def test_leaves_become_strings(self):
        document = imds.complete({"compute": {"platformFaultDomain": 0, "zone": None, "isVmInStandbyPool": True,
                                              "isHostCompatibilityLayerVm": False, "securityProfile": None, "plan": "",
                                              "storageProfile": {"dataDisks": [{"lun": 1}]}}})
        self.assertEqual([document["compute"][name] for name in ("platformFaultDomain", "zone", "isVmInStandbyPool",
                                                                 "isHostCompatibilityLayerVm")], ["0", "", "true", "false"])
        self.assertEqual(document["compute"]["storageProfile"]["dataDisks"][0]["lun"], "1")
        self.assertEqual(document["compute"]["plan"]["name"], "")

    def test_the_one_boolean(self):
        for value, shown in ((True, True), ("true", True), (False, False), ("false", False), (None, False), ("", False)):
            extended = imds.complete({"extended": {"compute": {"hasCustomData": value}}})["extended"]
            self.assertIs(extended["compute"]["hasCustomData"], shown)

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
        document = {"compute": {"tagsList": [{"name": "a", "value": "b"}]}}
        before = json.dumps(document)
        imds.complete(document)["compute"]["tagsList"].clear()
        self.assertEqual(json.dumps(document), before)

    def test_tags_and_their_list_are_made_from_one_another(self):
        for given, tags, pairs in (
            ({"tags": "a:b;c:d"}, "a:b;c:d", [("a", "b"), ("c", "d")]),
            ({"tags": "a:b:c;d:"}, "a:b:c;d:", [("a", "b:c"), ("d", "")]),  # a value may hold colons (observed)
            ({"tags": ""}, "", []), ({}, "", []), ({"tags": "lonely"}, "lonely", [("lonely", "")]),
            ({"tagsList": [{"name": "a", "value": "b:c"}, {"name": "d", "value": ""}]}, "a:b:c;d:",
             [("a", "b:c"), ("d", "")]),
            ({"tags": "x:y", "tagsList": [{"name": "a", "value": "b"}]}, "x:y", [("a", "b")]),  # both given: both kept
        ):
            with self.subTest(given=given):
                compute = imds.complete({"compute": given})["compute"]
                self.assertEqual(compute["tags"], tags)
                self.assertEqual(compute["tagsList"], [{"name": name, "value": value} for name, value in pairs])

    def test_what_no_json_can_hold(self):
        deep = {}
        for _ in range(3000):
            deep = {"a": deep}
        for document in ({"compute": {"x": float("nan")}}, {"compute": {"x": float("inf")}}, {"compute": {1: "a"}},
                         {"compute": {"name": "\ud800"}}, {"compute": {"x": {1, 2}}}, {"compute": {"plan": deep}}, deep):
            with self.assertRaises(ValueError) as caught:
                imds.complete(document)
            self.assertIn("JSON", str(caught.exception))

    def test_how_deep(self):
        def nested(levels):
            node = "x"
            for _ in range(levels - 2):  # instance and compute are two
                node = {"a": node}
            return {"compute": {"thing": node}}

        imds.complete(nested(60))
        with self.assertRaises(ValueError) as caught:
            imds.complete(nested(80))
        self.assertIn("more than 64 containers", str(caught.exception))


class Templates(unittest.TestCase):
    def test_the_notation(self):
        self.assertEqual(imds.fields("a:word b{c:name=0 d[{e:bool}]} f"), {
            "a": ("word", ""), "b": {"c": ("name", "0"), "d": [{"e": ("bool", False)}]}, "f": ("", "")})
        for text in ("a:b:c", "a=", "a-b", "a:"):
            with self.assertRaises(ValueError):
                imds.fields(text)

    def test_rows_add_to_those_before(self):
        rows = {"1": "a{b[{c}]}", "2": "a{b[{d}] e}", "3": "f"}
        self.assertEqual(imds.fields_until("2", rows), imds.fields("a{b[{c d}] e}"))


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
            ("name", "'compute/name'"),  # and not that of a disk, or of a plan
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
        listing = imds.format_text([{}] * 11)
        self.assertEqual(listing, "0/\n1/\n2/\n3/\n4/\n5/\n6/\n7/\n8/\n9/\n10/")  # indexes in their order

    def test_format_json(self):
        self.assertEqual(imds.format_json({"a": ["\u00e9", ""], "b": {}}), '{"a":["\u00e9",""],"b":{}}')
        self.assertEqual(imds.format_json({"a": 1}, 2), '{\n  "a": 1\n}')

    def test_a_name_that_is_not_known(self):
        for name, names, message in (
            ("linus", ["linux", "windows"], "there is no profile 'linus'; did you mean linux?"),
            ("zzz", ["linux", "windows"], "there is no profile 'zzz'; there are linux, windows"),
            (None, ["linux"], "there is no profile None; there are linux"),
            (["linux"], ["linux"], "there is no profile ['linux']"),
        ):
            with self.assertRaises(ValueError) as caught:
                imds.known(name, names, "profile")
            self.assertIn(message, str(caught.exception))
        self.assertEqual(imds.known("linux", iter(["linux"]), "profile"), "linux")


class Times(unittest.TestCase):
    def test_parse_time(self):
        for text, seconds in (
            ("Tue, 16 Mar 2021 00:58:46 GMT", 1615856326), ("2021-03-16T00:58:46Z", 1615856326),
            ("2021-03-16T00:58:46.123Z", 1615856326), ("2021-03-16T02:58:46+02:00", 1615856326),
            ("2021-03-15T19:58:46-0500", 1615856326), ("20210316T005846Z", 1615856326), ("2021-03-16 00:58", 1615856280),
            ("1970-01-01T00:00:00Z", 0), ("9999-12-31T23:59:59Z", 253402300799), ("", None),
            ("Tue, 16 Mar 2021 00:58:46 -0500", 1615874326), ("29 Feb 2024 00:00:00 GMT", 1709164800),
        ):
            with self.subTest(text=text):
                self.assertEqual(imds.parse_time(text), seconds)

    def test_what_is_no_time(self):
        for text in (
            "soon", "Tue, 99 Mar 2021 00:58:46 GMT", "Tue, 16 Mar 99999 00:58:46 GMT", "2021-02-29T00:00:00Z",
            "2021-03-16T24:00:00Z", "2021-03-16T00:60:00Z", "9999-12-31T23:59:59-23:00", "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00+01:00", "Tue, 16 Mar 2021 00:58:46 +99999999999999", "2021-03-16",
            "Tue, 16 Mar 999999999999 00:58:46 GMT", "\u0662\u0660\u0662\u0661-03-16T00:58:46Z", " ", "0", "16 Mar",
            "Tue, 16 Mar 2021 00:58:46 GMT" * 50, "Mon, 31 Nov 2021 00:00:00 GMT", "()", "Thu, 01 Jan -001 00:00:00 GMT",
        ):
            with self.subTest(text=text), self.assertRaises(ValueError):
                imds.parse_time(text)

    def test_http_date(self):
        for seconds, text in ((0, "Thu, 01 Jan 1970 00:00:00 GMT"), (1770462286.9, "Sat, 07 Feb 2026 11:04:46 GMT"),
                              (32503679999, "Tue, 31 Dec 2999 23:59:59 GMT")):
            self.assertEqual(imds.http_date(seconds), text)

    def test_guid(self):
        self.assertEqual(imds.guid("a", "b"), imds.guid("a", "b"))
        self.assertNotEqual(imds.guid("a", "b"), imds.guid("a", "c"))
        self.assertRegex(imds.guid("a"), r"^[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")
