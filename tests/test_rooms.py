"""The house: the syntax tree of imds.py says that no room knows a later one, and the tables of the contract fit the code."""

import ast
import itertools
import os
import re
import sys
import unittest

import imds
from tests.support import FILE

ROOMS = ["contract", "core", "documents", "signatures", "service", "bench", "http", "emulator", "client", "command line"]
with open(FILE, encoding="utf-8") as file:
    SOURCE = file.read()
TREE = ast.parse(SOURCE)
BANNER = re.compile(r"# ={60,}\n# Room (\d+): ([a-z ]+)\n#\n# (\w)", re.M)


def line_of(position):
    return SOURCE.count("\n", 0, position) + 1


BANNERS = [(line_of(found.start()), int(found.group(1)), found.group(2)) for found in BANNER.finditer(SOURCE)]


def room_of(line):
    """The number of the room that a line stands in; 0 before the first."""
    return max((number for start, number, _ in BANNERS if start <= line), default=0)


def string(node):
    """The value of a string in the tree, on every Python, or None."""
    value = getattr(node, {"Str": "s", "Constant": "value"}.get(type(node).__name__, ""), None)
    return value if isinstance(value, str) else None


def bound(node):
    """The names that a statement binds, with their lines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [(node.name, node.lineno)]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [((each.asname or each.name).partition(".")[0], node.lineno) for each in node.names]
    if isinstance(node, (ast.Name, ast.Starred)):
        return [(node.id, node.lineno)] if isinstance(node, ast.Name) else bound(node.value)
    targets = getattr(node, "targets", None) or getattr(node, "elts", None) or [getattr(node, "target", None)]
    return [pair for target in targets if target is not None for pair in bound(target)]


HOME = {}  # name of the module -> the rooms that bind it
for statement in TREE.body:
    if not isinstance(statement, (ast.If, ast.Expr)):
        for bound_name, bound_line in bound(statement):
            HOME.setdefault(bound_name, set()).add(room_of(bound_line))


def annotations():
    """What is used in annotations, which are strings here and no code: (name, line)."""
    for node in ast.walk(TREE):
        for child in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            for part in ast.walk(child) if child is not None else ():
                if string(part):
                    for name in re.findall(r"(?<![.\w])[A-Za-z_]\w*", string(part)):
                        yield name, node.lineno


def uses():
    """Every use of a name of the module: (name, line). A function's own names are told apart by the symbol table,
    which knows no lines but those of the scopes; so the names are looked for in the tree of each scope."""
    try:
        import symtable
    except ImportError:
        raise unittest.SkipTest("PyPy has no symbol tables") from None
    scopes, tables = {}, [symtable.symtable(SOURCE, "imds.py", "exec")]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        scopes.setdefault((table.get_name(), table.get_lineno()), []).append(table)

    def visit(node, names):
        for child in ast.iter_child_nodes(node):
            inner = names
            if isinstance(child, (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.GeneratorExp, ast.ListComp, ast.SetComp,
                                  ast.DictComp)):
                inner = names - hidden(child)
            if isinstance(child, ast.Name) and child.id in names and isinstance(child.ctx, ast.Load):
                yield child.id, child.lineno
            yield from visit(child, inner)

    def hidden(scope):
        """The names that mean something of the scope's own."""
        if isinstance(scope, (ast.FunctionDef, ast.Lambda)):
            name, lines = getattr(scope, "name", "lambda"), [scope.lineno]  # or, on some Pythons, that of a decorator
            lines += [each.lineno for each in getattr(scope, "decorator_list", ())]
            found = [table for line in lines for table in scopes.get((name, line), ())]
            if not found:
                raise AssertionError("no symbols of %s in line %d" % (name, scope.lineno))
            return {symbol.get_name() for table in found for symbol in table.get_symbols() if not symbol.is_global()}
        if isinstance(scope, ast.ClassDef):
            return set()  # what a class binds is not seen by its methods
        return {name for generator in scope.generators for name, _ in bound(generator.target)}

    return itertools.chain(visit(TREE, set(HOME)), ((name, line) for name, line in annotations() if name in HOME))


class House(unittest.TestCase):
    def test_ten_rooms_in_their_order_each_with_its_strategy(self):
        self.assertEqual([(number, name) for _, number, name in BANNERS], list(enumerate(ROOMS, 1)))
        self.assertEqual(len(re.findall("^# Room", SOURCE, re.M)), 10)
        listed = re.findall(r"^ +(\d+) ([a-z]+(?: [a-z]+)?)  ", imds.__doc__ or "", re.M)
        if imds.__doc__:  # not with -OO
            self.assertEqual([(int(number), name) for number, name in listed], list(enumerate(ROOMS, 1)))

    def test_every_name_has_one_room(self):
        self.assertEqual({name: rooms for name, rooms in HOME.items() if len(rooms) > 1}, {})
        self.assertGreater(len(HOME), 200)

    def test_no_room_uses_a_name_of_a_later_one(self):
        seen = list(uses())
        self.assertGreater(len(seen), 1000)
        self.assertEqual(sorted({(line, name) for name, line in seen if min(HOME[name]) > room_of(line)
                                 and not self.begins(line)}), [])

    def begins(self, line):
        """Whether a line is before the first room, or the end of the file, which starts the program."""
        return room_of(line) == 0 or any(
            isinstance(node, ast.If) and node.lineno <= line and "__main__" in map(string, ast.walk(node.test))
            for node in TREE.body)

    def test_names_with_an_underscore_stay_in_their_room(self):
        self.assertEqual(sorted({(name, line) for name, line in uses() if name.startswith("_") and not
                                 name.startswith("__") and room_of(line) not in HOME[name] and not self.begins(line)}), [])

    def test_attributes_with_an_underscore_stay_in_their_room(self):
        home = {}
        for node in ast.walk(TREE):
            if isinstance(node, ast.ClassDef):
                for name in [name for inner in node.body for name, _ in bound(inner)] + [
                        string(each) for inner in node.body if isinstance(inner, ast.Assign)
                        and "__slots__" in [name for name, _ in bound(inner)] for each in ast.walk(inner.value)]:
                    home.setdefault(name, set()).add(room_of(node.lineno))
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                home.setdefault(node.attr, set()).add(room_of(node.lineno))
        of_namedtuple = {"_replace", "_fields", "_asdict", "_make"}
        self.assertEqual(sorted(
            {(node.attr, node.lineno) for node in ast.walk(TREE) if isinstance(node, ast.Attribute)
             and re.match("_[^_]", node.attr) and node.attr not in of_namedtuple
             and room_of(node.lineno) not in home.get(node.attr, ())}), [])


class Public(unittest.TestCase):
    # What programs call: it may grow, and nothing of it may go.
    API = """Error NotFound Refused Unreachable Unavailable NotIMDS resolve format_text parse_time make_vm redact diff Clock
        Emulator ScaleSet Client get scheduled_events approve watch_events token attested attested_content""".split()

    def test_nothing_is_missing(self):
        self.assertEqual([name for name in self.API if name not in imds.__all__], [])

    def test_what_the_readme_shows_is_public(self):
        with open(os.path.join(os.path.dirname(imds.__file__), "README.md"), encoding="utf-8") as file:
            shown = set(re.findall(r"\bimds\.([A-Za-z_]+)\b", file.read())) - {"py", "json"}  # of files
        self.assertEqual((shown - set(imds.__all__), len(shown) > 20), (set(), True))

    def test_all_in_the_order_of_rooms(self):
        rooms = [min(HOME[name]) for name in imds.__all__]
        self.assertEqual(rooms, sorted(rooms))
        self.assertEqual(len(set(imds.__all__)), len(imds.__all__))
        block = re.search(r"^__all__ = \[\n(.*?)^\]", SOURCE, re.M | re.S).group(1)
        for title, lines in re.findall(r"# ([a-z ]+)\n((?: +\".*\n)+)", block):
            for name in re.findall(r'"(\w+)"', lines):
                with self.subTest(name=name):
                    self.assertEqual(HOME[name], {ROOMS.index(title) + 1})

    def test_each_is_there_and_documented(self):
        for name in imds.__all__:
            with self.subTest(name=name):
                self.assertFalse(name.startswith("_"))
                thing = getattr(imds, name)
                self.assertGreater(len(thing.__doc__ or "x" * 41 * (sys.flags.optimize > 1)), 40)  # -OO takes them away
        for node in TREE.body:
            if isinstance(node, ast.ClassDef) and node.name in imds.__all__:
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                        with self.subTest(name=node.name + "." + inner.name):
                            self.assertTrue(ast.get_docstring(inner))

    def test_what_the_documentation_calls_is_public(self):
        for node in ast.walk(TREE):
            if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)):
                for name in re.findall(r"(?<![\w.-])imds\.([A-Za-z]\w*)(?=[(. )])", ast.get_docstring(node) or ""):
                    if name != "py":
                        with self.subTest(name=name, where=getattr(node, "name", "the module")):
                            self.assertIn(name, imds.__all__)

    def test_every_error_is_public(self):
        errors = [name for name, thing in vars(imds).items() if isinstance(thing, type)
                  and issubclass(thing, Exception) and thing.__module__ == "imds" and not name.startswith("_")
                  and HOME[name] == {2}]
        self.assertEqual(errors, ["Error", "NotFound", "Refused", "Unreachable", "Unavailable", "NotIMDS"])
        self.assertLessEqual(set(errors), set(imds.__all__))

    def test_operations_are_methods_of_bench_and_surfaces_of_the_emulator(self):
        self.assertEqual(list(imds.OPERATIONS), sorted(imds.OPERATIONS))
        for name in imds.OPERATIONS:
            with self.subTest(name=name):
                operation, ours = getattr(imds.Bench, name), getattr(imds.Emulator, name)
                self.assertTrue(operation.__doc__ or sys.flags.optimize > 1)
                ours = ours.fget if isinstance(ours, property) else ours
                self.assertIs(ours.__wrapped__, operation)
                self.assertEqual(ours.__doc__, operation.__doc__)


def literals(node):
    """The strings that an expression may be: both of `"a" if x else "b"`."""
    if isinstance(node, ast.IfExp):
        return literals(node.body) + literals(node.orelse)
    return [string(node)] if string(node) else []


def rules():
    """The keys of REFUSALS that the code names: (rule, line)."""
    refuse = {"refuse", "_refuse"}.union(  # and the exception of the service
        node.name for node in TREE.body if isinstance(node, ast.ClassDef) and room_of(node.lineno) == 5
        and "Exception" in [getattr(base, "id", "") for base in node.bases])
    for node in ast.walk(TREE):
        if isinstance(node, ast.Call) and node.args and 5 <= room_of(node.lineno) <= 8:
            name = getattr(node.func, "id", None) or getattr(node.func, "attr", "")
            if name in refuse:
                for rule in literals(node.args[0]):
                    yield rule, node.lineno
        elif isinstance(node, ast.Assign) and room_of(node.lineno) == 5:  # the problem of a Target
            for target in node.targets:
                pairs = zip(target.elts, node.value.elts) if (
                    isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)) else [(target, node.value)]
                for left, right in pairs:
                    if getattr(left, "id", "") == "problem":
                        for rule in literals(right):
                            yield rule, node.lineno


KINDS = {name for name in vars(imds._Redactor) if not name.startswith("_")} - {"clean", "number"} | {"bool"}


def kinds(node, path=""):
    """The path and the kind of every leaf of a template."""
    if isinstance(node, imds.Field):
        yield path, node.kind
    for name, child in node.items() if isinstance(node, dict) else enumerate(node) if type(node) is list else ():
        yield from kinds(child, "%s.%s" % (path, name))


class Tables(unittest.TestCase):
    def test_every_endpoint_has_an_answer(self):
        for path, endpoint in imds.ENDPOINTS.items():
            with self.subTest(path=path):
                self.assertTrue(callable(getattr(imds.Service, endpoint.answer, None)), endpoint.answer)
                self.assertIn(endpoint.since, [None] + list(imds.VERSIONS))
                self.assertLessEqual(set(endpoint.verbs), {"GET", "POST"})
                service, target = imds.Service(lambda: 0), "/metadata/%s?api-version=2021-02-01" % path
                target = target.replace("2021-02-01", "2020-07-01") if path == "scheduledevents" else target
                self.assertIn(service.respond(imds.Request("GET", target, {"metadata": "true"})).status, (200, 400, 404))

    def test_every_status_has_a_reason_phrase(self):
        for rule, refusal in imds.REFUSALS.items():
            with self.subTest(rule=rule):
                self.assertTrue(imds.REASONS.get(refusal.status))
                self.assertTrue(refusal.reason)
        for each in re.findall(r"\b(\d{3}): \"", re.search(r"^REASONS = \{(.*?)^\}", SOURCE, re.M | re.S).group(1)):
            self.assertIn(int(each), imds.REASONS)

    def test_every_field_says_how_it_is_redacted(self):
        rows = dict(imds.VERSIONS, **imds.UNLISTED_VERSIONS)
        rows.update(imds.PARTS)
        found = [(row, path, kind) for row, text in rows.items() for path, kind in kinds(imds.fields(text))]
        self.assertGreater(len(found), 130)
        self.assertEqual([each for each in found if each[2] not in KINDS], [])
        self.assertEqual(KINDS - {kind for _, _, kind in found}, set())

    def test_every_dialect_is_of_a_rule(self):
        for name, bodies in imds.DIALECTS.items():
            self.assertTrue(any(path.partition("/")[0] == name for path in imds.ENDPOINTS), name)
            self.assertLessEqual(set(bodies), set(imds.REFUSALS))

    def test_every_event_type_and_field_is_of_a_version(self):
        for kind, row in imds.EVENT_TYPES.items():
            with self.subTest(kind=kind):
                self.assertIn(row.since, imds.EVENT_VERSIONS)
        for name, row in imds.EVENT_FIELDS.items():
            with self.subTest(name=name):
                self.assertIn(row.since, imds.EVENT_VERSIONS)
                self.assertIn(row.redaction, KINDS)

    def test_every_rule_is_a_row_and_every_row_is_used(self):
        found = list(rules()) + [(rule, 0) for rule in imds.FAULT_STATUSES.values()]  # of the steps of a playbook
        self.assertEqual(sorted({(rule, line) for rule, line in found if rule not in imds.REFUSALS}), [])
        self.assertEqual(sorted(set(imds.REFUSALS) - {rule for rule, _ in found}), [])

    def test_rows_of_attested_versions_scenarios_and_patience(self):
        self.assertLessEqual(set(imds.ATTESTED_VERSIONS), set(imds.VERSIONS))
        for name, arguments in imds.SCENARIOS.items():
            with self.subTest(name=name):
                self.assertIn(arguments["kind"], imds.EVENT_TYPES)
                imds.Bench(imds.Clock(lambda: 0)).play(name)
        for path in imds.PATIENCE:
            self.assertIn(path.partition(" ")[0], ["", *imds.ENDPOINTS])
