"""Access control: no other page is let in, nor anyone without the token beyond loopback; and secrets are never sent."""

import json
import logging
import re
from dataclasses import replace
from importlib.resources import files

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from websockets.exceptions import InvalidStatus

from pipeline.status import RunStatus
from pipeline.views.base import Endpoint
from pipeline.views.guard import is_loopback
from pipeline.views.metrics import metrics_text
from pipeline.views.web import TYPES
from tests.pipeline.test_streams import Pictures, stream
from tests.pipeline.views.client import Client, ask, frame, port_of, web

PATHS = ("/", "/main.js", "/style.css", "/poses", "/status", "/metrics", "/socket")
PAGE = {path.name: path.read_bytes() for path in files("pipeline.views").joinpath("page").iterdir()}


def token_of(view):
    return view.address.partition("?token=")[2]


FOREIGN = (
    "evil.example",
    "evil.example:8080",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "10.0.0.7",
    "",
    "[::2]",
    None,
)


@pytest.mark.parametrize("host", FOREIGN)
@pytest.mark.parametrize("path", PATHS)
def test_on_loopback_a_foreign_host_is_refused(host, path):
    with web() as view:
        status, _, body = ask(view, path, headers={"Host": host})
        assert status == 403 and b"Host" in body


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1", "127.0.0.1:8080", "[::1]:9000", "LOCALHOST"])
def test_loopback_is_known_by_its_names_at_any_port(host):
    with web() as view:
        assert ask(view, headers={"Host": host})[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "https://127.0.0.1", "file://"])
def test_another_page_can_open_no_socket_and_read_nothing(origin):
    with web() as view:
        view.show(frame(0))
        with pytest.raises(InvalidStatus, match="403"), Client(view, origin=origin):
            pass
        assert all(ask(view, path, headers={"Origin": origin})[0] == 403 for path in PATHS)
        _, headers, _ = ask(view)
        assert "access-control-allow-origin" not in headers and headers["cross-origin-resource-policy"] == "same-origin"
        assert "default-src 'self'" in headers["content-security-policy"]


def test_the_pages_own_origin_is_let_in():
    with web() as view:
        view.show(frame(0))
        with Client(view, origin=f"http://127.0.0.1:{port_of(view)}") as client:
            assert client.frames()[0]["index"] == 0


@pytest.mark.parametrize("wrong", ["", "x", "%00", "é"])
def test_beyond_loopback_nothing_is_told_without_the_token(wrong):
    with web("0.0.0.0") as view:
        for path in PATHS:
            assert ask(view, path)[0] == 401
            assert ask(view, f"{path}?token={wrong}".encode().decode("latin-1"))[0] == 401
            assert ask(view, path, headers={"Authorization": f"Bearer {wrong}"})[0] == 401
        with pytest.raises(InvalidStatus, match="401"), Client(view):
            pass
        assert len(token_of(view)) >= 32


def test_the_token_moves_into_a_cookie_and_opens_everything():
    with web("0.0.0.0") as view:
        view.show(frame(3))
        token = token_of(view)
        status, headers, _ = ask(view, f"/?token={token}")
        assert status == 303 and headers["location"] == "/"
        cookie, *attributes = headers["set-cookie"].split("; ")
        assert {"HttpOnly", "SameSite=Strict"} <= set(attributes)
        assert ask(view, headers={"Cookie": f"other=1; {cookie}"})[0] == 200
        assert ask(view, f"/status?token={token}")[0] == 200
        assert ask(view, "/metrics", headers={"Authorization": f"Bearer {token}"})[0] == 200
        with Client(view, additional_headers={"Cookie": cookie}) as client:
            assert client.frames()[0]["index"] == 3
        assert ask(view, headers={"Cookie": cookie, "Host": "evil.example"})[0] == 403


def test_each_run_has_a_token_of_its_own():
    with web("0.0.0.0") as one, web("0.0.0.0") as two:
        assert token_of(one) != token_of(two)
        assert ask(two, f"/status?token={token_of(one)}")[0] == 401


def test_the_token_is_logged_nowhere(caplog, capfd):
    caplog.set_level(logging.DEBUG)
    with web("0.0.0.0") as view:
        token = token_of(view)
        for path in ("/", "/status", "/nothing", "/socket"):
            ask(view, f"{path}?token={token}")
        with Client(view, additional_headers={"Authorization": f"Bearer {token}"}):
            pass
        ours = "\n".join(record.getMessage() for record in caplog.records if record.name != "websockets.client")
    captured = capfd.readouterr()
    assert token not in ours + captured.out + captured.err


@pytest.mark.parametrize(
    ("host", "inside"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.2", False), ("localhost.example", False)],
)  # fmt: skip
def test_what_is_loopback(host, inside):
    assert is_loopback(host) is inside


@pytest.fixture(scope="module")
def standing():
    with web() as view:
        yield view


PARTS = ("..", ".", "/", "%2e%2e", "%2f", "\\", "web.py", "page", "main.js", "//", "%00", "etc/passwd")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30),
        st.lists(st.sampled_from(PARTS)).map("/".join),
    )
)
@example("../web.py")
@example("..%2fweb.py")
@example("page/../main.js")
@example("//etc/passwd")
@example("/main.js/../../web.py")
@example("[")
def test_no_path_leads_out_of_the_pages_folder(standing, path):
    status, _, body = ask(standing, "/" + path, method="HEAD" if path.split("?")[0].strip("/") == "poses" else "GET")
    if status == 200 and body and path.split("?")[0].split("#")[0] not in ("status", "metrics"):
        assert body in PAGE.values()
    assert b"class WebView" not in body and b"root:" not in body


def test_the_page_loads_nothing_from_elsewhere_and_all_that_it_loads_is_there():
    for name, data in PAGE.items():
        text = data.decode()
        assert name.rpartition(".")[2] in TYPES
        assert not re.search(r"(?:https?:)?//[\w-]+\.\w", text.replace("http://www.w3.org/2000/svg", "")), name
        for loaded in re.findall(r'(?:from|import|src=|href=)\s*"(?:\./)?([^"#]+)"', text):
            assert loaded in PAGE, f"{name} loads {loaded}"
        assert "innerHTML" not in text, "a source's name is text, never markup"


class Told(RunStatus):
    """A status that names a camera's password where it should not."""

    def __init__(self, source):
        super().__init__([stream(Pictures(0, source))])
        self.source = source

    def record(self):
        ledger = {"received": 1, "posed": 1, "dropped": 0, "failed": 0, "drop_reasons": []}
        now = {"state": "lost", "cause": f"{self.source} refused the password", "fps_in": 1, "fps_out": 1, "age_ms": None}
        source = {"name": self.source, "ledger": ledger, "missed": {}, "stages": [], "now": now}
        return {"sources": [source | {"people": {"frames_with_a_pose": 1}}]}


@pytest.mark.parametrize("uri", ["rtsp://admin:hunter2@10.0.0.7/1", "http://10.0.0.7/v?user=a&password=hunter2"])
def test_no_cameras_password_reaches_a_client(uri):
    with web(sources=(uri,), status=Told(uri)) as view:
        view.show(frame(0, uri))
        with Client(view) as client:
            head, _ = client.receive()
            assert "hunter2" not in json.dumps([client.hello, head])
            assert head["frames"][0]["source"] == client.hello["sources"][0]["source"]["name"]
        assert all(b"hunter2" not in ask(view, path)[2] for path in ("/status", "/metrics"))


@given(st.text(), st.text())
def test_metrics_are_read_back_as_they_were(name, reason):
    status = Told(name).record()
    status["sources"][0]["ledger"] |= {"dropped": 3, "drop_reasons": [{"reason": reason, "count": 3}]}
    read = {}
    for line in metrics_text(status).split("\n")[:-1]:
        if not line.startswith("#"):
            metric, labels, value = re.fullmatch(r'(\w+)\{((?:\w+="(?:[^"\\\n]|\\["\\n])*",?)*)\} (\S+)', line).groups()
            pairs = re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels)
            plain = {key: re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], text) for key, text in pairs}
            read[metric, tuple(plain.values())] = float(value)
    assert read["convnextpose_dropped_frames_total", (name, reason)] == 3
    assert read["convnextpose_frames_total", (name, "posed")] == 1


@given(st.sampled_from(["localhost", "127.0.0.1", "0.0.0.0", "::1", "fe80::1", "a.example"]), st.integers(0, 65535))
def test_an_endpoint_reads_back(host, port):
    endpoint = Endpoint(host, port)
    assert Endpoint.parse(str(endpoint)) == endpoint and Endpoint.parse(str(port)) == replace(endpoint, host="127.0.0.1")


@pytest.mark.parametrize("text", ["", "x", "a:b", "1:2:3", "65536", "host:", "::1:80", "-1", "[::1]", "8080 8081"])
def test_what_is_no_endpoint_is_refused_in_one_sentence(text):
    with pytest.raises(ValueError, match=r"expected an? (address|port)"):
        Endpoint.parse(text)
