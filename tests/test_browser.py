"""The page of /imds/ in a headless Chromium, and what pages of other origins can do to an emulator: nothing."""

import base64
import http.client
import http.server
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.request

import imds

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--no-proxy-server",
    # No name leads out of this machine, and one that a page could have bought leads to the emulator.
    "--host-resolver-rules=MAP evil.example 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of WebDriver's references (W3C)
TAB, ENTER = "\ue004", "\ue007"
SCRIPT = "<script>alert(1)</script>"


class Browser:
    """A Chromium, by WebDriver: a call is a path below the session, and JSON."""

    def __init__(self):
        self.profile = tempfile.mkdtemp()
        self.base = self.session = None
        for _ in range(5):  # it ends at once where the port that it finds is free for IPv6 only
            self.driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            found = filter(None, (re.search(rb"successfully on port (\d+)", line) for line in self.driver.stdout))
            self.base = next((int(each.group(1)) for each in found), None)
            if self.base:
                break
            self.driver.communicate(timeout=10)
        try:
            arguments = list(FLAGS) + ["--user-data-dir=" + self.profile]
            self.session = self.send("POST", "/session", {"capabilities": {"alwaysMatch": {
                "browserName": "chrome", "goog:chromeOptions": {"binary": CHROMIUM, "args": arguments},
                "timeouts": {"script": 20000}, "unhandledPromptBehavior": "ignore"}}})["sessionId"]
        except Exception:
            self.close()
            raise

    def close(self):
        if self.session:
            self.send("DELETE", "/session/" + self.session)
        self.driver.terminate()
        self.driver.communicate(timeout=10)
        shutil.rmtree(self.profile, ignore_errors=True)

    def send(self, verb, path, content=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.base, timeout=60)
        try:
            connection.request(verb, path, json.dumps(content) if content is not None else None,
                               {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read().decode())["value"]
        finally:
            connection.close()
        if isinstance(answer, dict) and "error" in answer:
            raise AssertionError("%s: %s" % (answer["error"], answer["message"].splitlines()[0]))
        return answer

    def __call__(self, path, **content):
        return self.send("POST", "/session/%s/%s" % (self.session, path), content)

    def go(self, url):
        self("url", url=url)

    def run(self, script, *arguments):
        """What a function's body returns, or its promise's value."""
        return self("execute/sync", script=script, args=list(arguments))

    def find(self, xpath):
        return self("element", using="xpath", value=xpath)[ELEMENT]

    def click(self, xpath):
        self("element/%s/click" % self.find(xpath))

    def type(self, xpath, text):
        self("element/%s/value" % self.find(xpath), text=text)

    def press(self, key):
        """A key, wherever the focus is."""
        self("actions", actions=[{"type": "key", "id": "keys", "actions": [{"type": "keyDown", "value": key},
                                                                           {"type": "keyUp", "value": key}]}])

    def text(self):
        return self.run("return document.body.innerText")

    def has_alert(self):
        try:
            self.send("GET", "/session/%s/alert/text" % self.session)
        except AssertionError:
            return False
        return True


def ask(vm, target, headers=(), method="GET", data=None):
    """A request of some program beside the browser."""
    request = urllib.request.Request(vm.url + target, data=data, method=method, headers=dict({"Metadata": "true"}, **dict(headers)))
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as reply:
        return json.loads(reply.read().decode() or "null")


class Another(http.server.BaseHTTPRequestHandler):
    """Somebody else's web server: a page of nothing."""

    def do_GET(self):
        body = b"<!DOCTYPE html><title>another</title><p>another origin"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@unittest.skipIf(os.environ.get("IMDS_WITHOUT_BROWSER"), "left out: IMDS_WITHOUT_BROWSER is set")
@unittest.skipUnless(CHROMIUM and DRIVER, "no chromium or no chromedriver here")
class InABrowser(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.browser = Browser()
        cls.another = http.server.HTTPServer(("127.0.0.1", 0), Another)
        threading.Thread(target=cls.another.serve_forever, daemon=True).start()
        cls.elsewhere = "http://127.0.0.1:%d/" % cls.another.server_address[1]

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()
        cls.another.shutdown()
        cls.another.server_close()

    def setUp(self):
        self.vm = imds.Emulator(control=True, profile="scaleset").start()
        self.addCleanup(self.vm.stop)

    def eventually(self, what, seconds=10):
        """Wait until something is true: the page looks once a second."""
        until = time.monotonic() + seconds
        while not what():
            self.assertLess(time.monotonic(), until, "the page shows\n" + self.browser.text())
            time.sleep(0.05)

    def open_page(self):
        self.browser.go(self.vm.url + "/imds/")
        self.eventually(lambda: "web_1" in self.browser.text())


class Page(InABrowser):
    def test_a_request_appears_without_a_reload(self):
        self.open_page()
        self.browser.run("window.loaded = 'once'")
        ask(self.vm, "/metadata/instance?api-version=2021-02-01", {"User-Agent": "agent-of-the-test"})
        self.eventually(lambda: "agent-of-the-test" in self.browser.text())
        self.assertEqual(self.browser.run("return window.loaded"), "once")
        self.assertIn("GET /metadata/instance?api-version=2021-02-01", self.browser.text())
        self.eventually(lambda: "old-api-version" in self.browser.text())  # and its judgement

    def test_a_server_that_was_started_anew(self):
        for agent in ("before-1", "before-2", "before-3"):
            ask(self.vm, "/metadata/versions", {"User-Agent": agent})
        self.open_page()
        self.eventually(lambda: "before-3" in self.browser.text())
        port = self.vm.port
        self.vm.stop()
        self.eventually(lambda: "before-3" not in self.browser.text())
        self.vm = self.again = imds.Emulator(profile="scaleset", control=True, port=port).start()
        self.addCleanup(self.again.stop)
        ask(self.vm, "/metadata/versions", {"User-Agent": "the-first-of-the-next"})
        self.eventually(lambda: "the-first-of-the-next" in self.browser.text())
        self.eventually(lambda: self.browser.run("return document.querySelector('#said').innerText") == "")

    def test_all_that_is_shown_is_text(self):
        self.vm.update({"compute": {"tags": SCRIPT, "name": "web_1" + SCRIPT}})
        self.vm.schedule("Freeze", description=SCRIPT)
        self.open_page()
        ask(self.vm, "/metadata/versions?" + urllib.request.quote(SCRIPT, safe="<>()/"), {"User-Agent": SCRIPT})
        cells = "return Array.from(document.querySelectorAll('#requests td')).map(each => each.textContent)"
        self.eventually(lambda: SCRIPT in self.browser.run(cells))
        self.eventually(lambda: SCRIPT in self.browser.run("return document.querySelector('#events').textContent"))
        self.assertIn(SCRIPT, self.browser.run("return document.querySelector('#tree').textContent"))
        self.assertFalse(self.browser.has_alert())
        self.assertEqual(self.browser.run("return document.scripts.length"), 1)

    def test_events_by_buttons(self):
        self.open_page()
        self.browser.type("//select[@id='kind']", "Reboot")
        self.browser.click("//button[@id='schedule']")
        self.eventually(lambda: self.listed() == [("Reboot", "Scheduled")])
        self.eventually(lambda: "Host server is undergoing maintenance." in self.browser.text())
        self.browser.run("document.querySelector('#events button').click()")  # the table is made anew each second
        self.eventually(lambda: self.listed() == [("Reboot", "Started")])
        self.eventually(lambda: "Started" in self.browser.text())
        self.browser.run("document.querySelectorAll('#events button')[1].click()")
        self.eventually(lambda: self.listed() == [])

    def listed(self):
        events = ask(self.vm, "/metadata/scheduledevents?api-version=2020-07-01")["Events"]
        return [(event["EventType"], event["EventStatus"]) for event in events]

    def test_faults_by_buttons(self):
        self.open_page()
        self.browser.type("//input[@id='playbook']", "instance: 500 always")
        self.browser.click("//button[@id='fail']")
        self.eventually(lambda: self.vm.faults() == ["instance: 500 always"])
        self.eventually(lambda: "instance: 500 always" in self.browser.run("return document.querySelector('#faults').innerText"))
        self.browser.click("//button[@data-do='recover']")
        self.eventually(lambda: self.vm.faults() == [])

    def test_a_mistake_is_said(self):
        self.open_page()
        self.browser.type("//input[@id='playbook']", "instance: 999")
        self.browser.click("//button[@id='fail']")
        self.eventually(lambda: "999" in self.browser.run("return document.querySelector('#said').innerText"))

    def test_by_keyboard(self):
        self.open_page()
        self.vm.clock.freeze()
        now, seen = self.vm.clock(), []
        focused = "const on = document.activeElement; return on.textContent.slice(0, 30) || on.id || on.tagName"
        for _ in range(40):
            self.browser.press(TAB)
            seen.append(self.browser.run(focused))
            if seen[-1] == "+15 min":
                self.browser.press(ENTER)
            if seen[-1] == "playbook":
                break
        self.assertEqual(seen[:2], ["+1 min", "+15 min"])
        self.eventually(lambda: self.vm.clock() == now + 900)
        self.browser.type("//input[@id='playbook']", "throttled" + ENTER)
        self.eventually(lambda: self.vm.faults() == ["429 for 10s"])

    def test_it_fits_a_phone(self):
        self.browser("window/rect", width=400, height=800)
        try:
            self.open_page()
            self.assertLessEqual(self.browser.run("return document.documentElement.scrollWidth - window.innerWidth"), 0)
            picture = self.browser.send("GET", "/session/%s/screenshot" % self.browser.session)
            self.assertEqual(base64.b64decode(picture)[:8], b"\x89PNG\r\n\x1a\n")
            if os.environ.get("IMDS_SCREENSHOT"):
                with open(os.environ["IMDS_SCREENSHOT"], "wb") as file:
                    file.write(base64.b64decode(picture))
        finally:
            self.browser("window/rect", width=1200, height=900)


# What a page of another origin can try: each returns what it could read, or null.
READ = """
const [url, options] = arguments;
return fetch(url, options).then(reply => reply.type === "opaque" ? null : reply.text(), () => null);
"""
POST_A_FORM = """
const [url, name, value] = arguments;
const frame = document.createElement("iframe"), form = document.createElement("form"), field = document.createElement("input");
frame.name = "frame" + Math.random(); form.target = frame.name; form.method = "POST"; form.enctype = "text/plain";
form.action = url; field.name = name; field.value = value; form.append(field);
document.body.append(frame, form);
return new Promise(done => {
  frame.onload = () => setTimeout(() => { try { done(frame.contentDocument && frame.contentDocument.body.innerText || null); }
                                          catch (error) { done(null); } }, 50);
  form.submit(); setTimeout(() => done(null), 3000);
});
"""
SHOW = """
const [kind, url] = arguments;
return new Promise(done => {
  const made = document.createElement(kind);
  made.onload = () => done("loaded"); made.onerror = () => done(null);
  made.src = url; document.body.append(made);
});
"""


class AnotherOrigin(InABrowser):
    def state(self):
        return self.vm.instance, self.vm.events(), self.vm.faults(), self.vm.identities

    def test_it_reads_nothing(self):
        self.browser.go(self.elsewhere)
        targets = ["/metadata/instance?api-version=" + version for version in self.vm.versions]
        targets += ["/metadata/scheduledevents?api-version=" + version for version in imds.EVENT_VERSIONS]
        targets += ["/metadata/versions", "/imds/", "/imds/instance", "/imds/requests", "/metadata/loadbalancer?api-version=2021-02-01",
                    "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net"]
        for target in targets:
            for options in ({}, {"headers": {"Metadata": "true"}}, {"mode": "no-cors"}):
                with self.subTest(target=target, options=options):
                    self.assertIsNone(self.browser.run(READ, self.vm.url + target, options))
        for kind in ("img", "script"):
            self.assertIsNone(self.browser.run(SHOW, kind, self.vm.url + targets[0]))

    def test_it_changes_nothing(self):
        event = self.vm.schedule("Reboot")
        before = self.state()
        self.browser.go(self.elsewhere)
        approval = json.dumps({"StartRequests": [{"EventId": event}]})
        tries = [("/metadata/scheduledevents?api-version=" + version, approval) for version in imds.EVENT_VERSIONS]
        tries += [("/imds/schedule", '{"kind": "Freeze"}'), ("/imds/fail", '{"playbook": "dead"}'),
                  ("/imds/cancel", json.dumps({"event_id": event})), ("/imds/update", '{"patch": {"compute": {"name": "x"}}}'),
                  ("/imds/identities", '{"identities": []}'), ("/imds/reset", "{}")]
        for target, body in tries:
            name, _, value = body.partition(":")  # a form of text/plain sends name=value: JSON with an = in it
            for options in ({"method": "POST", "body": body}, {"method": "POST", "body": body, "mode": "no-cors"},
                            {"method": "POST", "body": body, "headers": {"Metadata": "true"}}):
                with self.subTest(target=target, options=options):
                    self.browser.run(READ, self.vm.url + target, options)
                    self.assertEqual(self.state(), before)
            with self.subTest(form=target):
                self.assertIsNone(self.browser.run(POST_A_FORM, self.vm.url + target, name + ':"', '":' + value))
                self.assertEqual(self.state(), before)
        self.assertIsNone(self.browser.run(SHOW, "img", self.vm.url + "/imds/advance?seconds=900"))
        self.assertEqual(self.state(), before)

    def test_it_has_no_page_of_ours_in_a_frame(self):
        self.browser.go(self.elsewhere)
        self.browser.run("const made = document.createElement('iframe'); made.src = arguments[0]; document.body.append(made);"
                         "return new Promise(done => { made.onload = () => done(1); setTimeout(() => done(0), 3000); })",
                         self.vm.url + "/imds/")
        self.browser("frame", id=0)
        try:
            self.assertNotIn("Scheduled events", self.browser.run("return document.documentElement.innerText"))
        finally:
            self.browser("frame", id=None)

    def test_a_name_that_leads_here_by_another_way(self):
        # DNS rebinding: the page's own name leads to the emulator, so all of this is of the same origin for the browser.
        port = self.vm.url.rpartition(":")[2]
        event = self.vm.schedule("Reboot")
        before = self.state()
        self.browser.go("http://evil.example:%s/imds/" % port)
        self.assertEqual(self.browser.run("return location.hostname"), "evil.example")
        self.assertNotIn("web_1", self.browser.text())
        for target in ["/metadata/instance?api-version=2021-02-01", "/metadata/instance?api-version=2017-03-01", "/metadata/versions",
                       "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net", "/imds/instance"]:
            said = self.browser.run("return fetch(arguments[0], {headers: {Metadata: 'true'}}).then("
                                    "async reply => [reply.status, await reply.text()])", target)
            with self.subTest(target=target):
                self.assertEqual(said[0], 400)
                for secret in ("web_1", "access_token", "apiVersions", "2017-04-02"):
                    self.assertNotIn(secret, said[1])
        for version in imds.EVENT_VERSIONS:
            said = self.browser.run("return fetch(arguments[0], {method: 'POST', body: arguments[1], headers: {Metadata: 'true'}})"
                                    ".then(reply => reply.status)", "/metadata/scheduledevents?api-version=" + version,
                                    json.dumps({"StartRequests": [{"EventId": event}]}))
            self.assertEqual((said, self.state()), (400, before))
