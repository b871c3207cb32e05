"""Names of sources: which are URIs, and that no shown name contains a password."""

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from convnextpose.errors import SourceError
from pipeline.sources import open_source, without_password
from tests.pipeline.media import picture, read, refusal, write_video

SECRETS = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S")), min_size=3, max_size=12)
PLAIN = st.from_regex(r"[a-z][a-z0-9.]{1,8}", fullmatch=True)


def shown_of(secret, text):
    """Whether the text contains a part of the secret that is long enough to recognise it."""
    return any(secret[at : at + 3] in text for at in range(len(secret) - 2))


@given(
    scheme=st.sampled_from(["rtsp://", "https://", "rtps://", "rtsp:/", ""]), user=PLAIN, secret=SECRETS, host=PLAIN, path=PLAIN
)
@example(scheme="rtsp://", user="u", secret="a/b@c:d", host="h", path="p")
@example(scheme="rtsp://", user="u", secret="12/34", host="h", path="p")
@example(scheme="rtsp://", user="u", secret="pw=12&34", host="h", path="p")
def test_no_part_of_a_password_is_shown(scheme, user, secret, host, path):
    shown = without_password(f"{scheme}{user}:{secret}@{host}/{path}")
    assert not shown_of(secret, shown.replace("***", "").removeprefix(scheme).replace(f"{host}/{path}", ""))
    assert user not in shown.removeprefix(scheme).replace(f"{host}/{path}", "")


@given(name=st.sampled_from(["password", "pwd", "PASS", "token", "api_key", "auth"]), secret=SECRETS, host=PLAIN)
@example(name="password", secret="p@ss:w/d", host="h")
def test_no_part_of_a_secret_parameter_is_shown(name, secret, host):
    secret = secret.replace("&", "")
    for uri in (f"rtsp://{host}/x?channel=1&{name}={secret}", f"rtsp://{host}/user=a_{name}={secret}"):
        shown = without_password(uri)
        assert not shown_of(secret, shown.replace(f"rtsp://{host}/", "").replace(f"x?channel=1&{name}=", ""))


@given(host=PLAIN, path=st.from_regex(r"[a-z0-9_/\-]{0,12}", fullmatch=True), port=st.integers(1, 65535))
def test_a_uri_without_secrets_stays_as_it_is(host, path, port):
    uri = f"rtsp://{host}:{port}/{path}"
    assert without_password(uri) == uri


def test_names_of_files_stay_as_they_are():
    for name in ("a@b.mp4", "holiday 12.mp4", "C:\\videos\\a.mp4", "file:///a:b@c.mp4"):
        assert without_password(name) == name
    assert without_password(Path("12:30@home.mp4")) == "12:30@home.mp4"


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("fiel:///a.mp4", "did you mean file://?"),
        ("File-:///a.mp4", "did you mean file://?"),
        ("gopher://admin:hunter2@10.0.0.7/live", "its scheme is unknown"),
        ("rtps://admin:hunter2@10.0.0.7/live", "did you mean rtsp://?"),
        ("rstp://admin:hunter2@10.0.0.7/live", "did you mean rtsp://?"),
        ("srt://admin:hunter2@10.0.0.7:9000", "its scheme is unknown"),
        ("rtsp:/admin:hunter2@10.0.0.7/live", "did you mean rtsp://?"),
        ("rtsp//admin:hunter2@10.0.0.7/live", "did you mean rtsp://?"),
        ("csi:0", "there is no csi:0: did you mean csi://?"),
        ("usb", "did you mean usb:0?"),
        ("door=rtsp://admin:hunter2@10.0.0.7/live", "did you mean rtsp://10.0.0.7/live?"),
        ("Test", "did you mean test://?"),
        ("test" * 2000, "File name too long"),
        (f"test:{'a' * 5000}", "did you mean test://?"),
        ("admin:hunter2@10.0.0.7/live", "there is no"),
        ("rtp://admin:hunter2@10.0.0.7\ud800:5004", "printable characters"),
        ("rtp://admin:hunter2@10.0.0.7\r\na=x:5004", "printable characters"),
        ("rtsp://admin:hunter2@10.0.0.7/li\x00ve", "printable characters"),
    ],
)
def test_an_unknown_scheme_gets_a_sentence_without_the_password(uri, says):
    with pytest.raises(SourceError, match=re.escape(says)) as caught:
        open_source(uri)
    assert "hunter2" not in str(caught.value) and "admin" not in str(caught.value)


def test_a_file_may_be_called_as_a_scheme_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("test", "rtsp:1.avi"):
        write_video(tmp_path / "clip.avi", pictures=[picture(0)] * 2).rename(tmp_path / name)
        assert len(read(name)[0]) == 2


def test_a_file_uri_is_a_path(tmp_path):
    path = write_video(tmp_path / "a b%.mp4", pictures=[picture(0)] * 2)
    for uri in (path.as_uri(), f"file://localhost{path.as_uri()[7:]}", f"FILE://{path.as_uri()[7:]}"):
        frames, error = read(uri)
        assert error is None and len(frames) == 2 and frames[0].source_id == "a b%.mp4"
    assert "another" in refusal(path.as_uri().replace("file://", "file://server"))


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("file://[/a.mp4", "names another machine"),
        (f"rtsp://h:{'1' * 5000}/a", "host[:port]"),
        (f"csi://{'1' * 5000}", "csi://0"),
    ],
)
def test_what_pythons_parsers_choke_on_is_refused_in_words(uri, says):
    """A single bracket; more digits than Python converts to a number."""
    assert says in refusal(uri)
