"""The page as programs, other sites and impatient users meet it: a real server, no browser."""

import http.client
import io
import json
import os
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.app.make import make_run, serving

pytest.importorskip("gradio")

MB = 1024**2
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    with serving(folder, run=make_run(folder / "mine"), max_upload_mb=2, allow_hosts=["page.example"]) as site:
        site.pictures = next((folder / "tmp").glob("secvit_app_*")) / "gradio_temp_dir"
        yield site


def send(site, method, path, body=None, headers=(), **more):
    with closing(http.client.HTTPConnection(urlsplit(site).netloc, timeout=120)) as connection:
        connection.request(method, path, body, dict(headers), **more)
        answer = connection.getresponse()
        return answer.status, answer.read()


def form(content, name="leaves.jpg"):
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n--x--\r\n"


def jpeg(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content := io.BytesIO(), "jpeg")
    return content.getvalue()


def upload(site, seed=0):
    status, answer = send(site, "POST", "/gradio_api/upload", form(jpeg(seed)), FORM)
    assert status == 200
    return json.loads(answer)[0]


def given(path, **changes):
    """What `clusters` takes, in its order."""
    photo = {"path": path, "meta": {"_type": "gradio.FileData"}}
    values = {
        "photo": photo, "model": "mine (yours)", "stage": 1, "block": 0, "head": 1, "partition": "SEC",
        "counted": "as it is", "count": 8, "size": 64, "near": 1, "far": False,
    }  # fmt: skip
    return list({**values, **changes}.values())


def clusters(site, values, call="clusters"):
    status, answer = send(site, "POST", f"/gradio_api/run/{call}", json.dumps({"data": values}), JSON)
    return status, json.loads(answer)


def test_foreign_names_and_sites_get_nothing(site):
    own = urlsplit(site).netloc
    for path in ("/", "/config", "/theme.css", "/gradio_api/info", "/gradio_api/queue/data?session_hash=a"):
        assert send(site, "GET", path, headers={"Host": "evil.example"})[0] == 403
    for method in ("OPTIONS", "GET", "HEAD"):
        asks = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
        assert send(site, method, "/config", headers=asks)[0] == 403
    before = len(list(site.pictures.rglob("*")))
    assert send(site, "POST", "/gradio_api/upload", form(jpeg()), {**FORM, "Origin": "null"})[0] == 403
    assert len(list(site.pictures.rglob("*"))) == before
    assert send(site, "GET", "/config", headers={"Host": "page.example"})[0] == 200
    assert send(site, "GET", "/config", headers={"Origin": f"http://{own}"})[0] == 200


def test_large_bodies_are_refused_and_the_next_request_is_answered(site):
    large = b'{"data": ["' + b"s" * 30 * MB + b'"]}'
    for path in ("/gradio_api/run/clusters", "/gradio_api/queue/join", "/gradio_api/upload", "/nowhere"):
        status, answer = send(site, "POST", path, large, JSON)
        assert status == 413 and b"more than" in answer
    pieces = iter([b"s" * MB] * 30)
    status, _ = send(site, "POST", "/gradio_api/queue/join", pieces, JSON, encode_chunked=True)
    assert status == 413
    whole = form(b"s" * 30 * MB)
    pieces = (whole[i : i + MB] for i in range(0, len(whole), MB))
    assert send(site, "POST", "/gradio_api/upload", pieces, FORM, encode_chunked=True)[0] == 413
    assert send(site, "GET", "/config")[0] == 200


def test_a_body_that_comes_slowly_keeps_nobody_waiting(site):
    address = urlsplit(site)
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 1000\r\n\r\n".encode()
    slow = [socket.create_connection((address.hostname, address.port)) for _ in range(30)]
    for connection in slow:
        connection.sendall(head + b"-")
    start = time.monotonic()
    assert send(site, "GET", "/config")[0] == 200
    assert time.monotonic() - start < 10
    for connection in slow:
        connection.close()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stage": "two"}, "stage: 'two'; give a whole number from 0 to 1000000"),
        ({"stage": None}, "stage: None; give a whole number"),
        ({"stage": True}, "stage: True; give a whole number"),
        ({"head": 1.5}, "head: 1.5; give a whole number"),
        ({"count": [8]}, r"count: \[8\]; give a whole number"),
        ({"count": 10**30}, "count: 1000000000000000000000000000000; give a whole number from 0 to 1000000"),
        ({"size": 63}, "size: 63; give a whole number from 64 to 640"),
        ({"model": None}, r"model: None; choose one of mine \(yours\), secvit_nano.clothing10"),
        ({"partition": {"a": 1}}, r"partition: \{'a': 1\}; choose one of SEC, tree, window, k-means, random"),
        ({"counted": 3}, "counted: 3; choose one of as it is"),
        ({"photo": None}, "photo: None; give a photo that was uploaded here"),
        ({"photo": "leaves.jpg"}, "photo: 'leaves.jpg'; give a photo that was uploaded"),
        ({"photo": {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}}, "give a photo that was uploaded"),
        (
            {"photo": {"path": "http://127.0.0.1:1/a.jpg", "meta": {"_type": "gradio.FileData"}}},
            "give a photo that was",
        ),
        ({"photo": {"path": "a\0b"}}, "give a photo that was uploaded"),
        ({"near": 0}, "near=0; choose a whole number"),
        ({"far": 1}, "far: 1; give true or false"),
        ({"head": 3}, "head 3; stage 1 of secvit_nano has heads 1 to 2"),
    ],
)
def test_a_program_is_told_which_value_is_wrong(site, changes, reason):
    status, answer = clusters(site, given(upload(site), **changes))
    assert status == 500 and re.search(reason, answer["error"]), answer


def test_a_program_gets_what_a_place_attends_to(site):
    photo, *setting = given(upload(site), partition="tree", near=2, far=True)
    status, answer = clusters(site, [photo, 30, 60, *setting], "attends")
    assert status == 200, answer
    with Image.open(io.BytesIO(send(site, "GET", urlsplit(answer["data"][0]["url"]).path)[1])) as picture:
        assert picture.width > 3 * 400  # three panels
    assert (
        "x: 101; give a whole number from 0 to 100" in clusters(site, [photo, 101, 60, *setting], "attends")[1]["error"]
    )


def test_a_click_into_the_clusters_says_where_it_was(site):
    calls = json.loads(send(site, "GET", "/config")[1])["dependencies"]
    point = next(call["id"] for call in calls if call["targets"][0][1] == "select" and len(call["outputs"]) == 3)

    def click(index):
        body = {"data": [None], "fn_index": point, "session_hash": "s", "event_data": {"index": index, "value": None}}
        return json.loads(send(site, "POST", "/gradio_api/run/predict", json.dumps(body), JSON)[1])

    assert click([480, 10_000])["data"] == [True, 50, 100]  # of a picture 960 px wide
    for wrong in (3, [1], ["a", 2], None):
        assert "click into the picture" in click(wrong)["error"]


def test_a_program_is_told_how_many_values_there_are(site):
    names = "photo, model, stage, block, head, partition, counted, count, size, near, far"
    assert clusters(site, [])[1]["error"] == f"0 values; give 11: {names}"
    assert clusters(site, [*given(upload(site)), 1])[1]["error"] == f"12 values; give 11: {names}"


def test_the_pages_own_calls_check_what_comes_too(site):
    for number in range(20):
        body = {"data": ["words"] * 22, "fn_index": number, "session_hash": "s"}
        status, answer = send(site, "POST", "/gradio_api/run/predict", json.dumps(body), JSON)
        assert status == 500 and json.loads(answer)["error"]


def test_what_is_no_call_at_all_is_answered_with_a_sentence(site):
    for path, body in (("run/nothing", {"data": []}), ("run/clusters", {"data": [], "fn_index": 999})):
        status, answer = send(site, "POST", f"/gradio_api/{path}", json.dumps(body), JSON)
        assert status == 400 and "/gradio_api/info says what can be asked" in json.loads(answer)["error"]


def test_a_photo_that_was_removed_is_named(site):
    path = upload(site, seed=1)
    os.remove(path)
    assert "give a photo that was uploaded here" in clusters(site, given(path))[1]["error"]


def test_twenty_at_once_get_their_pictures(site):
    def visit(seed):
        status, answer = clusters(site, given(upload(site, seed)))
        assert status == 200, answer
        return send(site, "GET", urlsplit(answer["data"][0]["url"]).path)

    with ThreadPoolExecutor(20) as visitors:
        answers = list(visitors.map(visit, range(20)))
    assert {status for status, _ in answers} == {200}
    assert len({content for _, content in answers}) == 20


def test_uploads_do_not_fill_the_disk(site):
    for seed in range(120):
        assert send(site, "POST", "/gradio_api/upload", form(os.urandom(2 * MB), f"{seed}.jpg"), FORM)[0] == 200
    size = sum(path.stat().st_size for path in site.pictures.rglob("*") if path.is_file())
    assert 190 * MB < size < 205 * MB  # of 240 MB
    assert clusters(site, given(upload(site)))[0] == 200


def test_a_picture_to_keep_is_swept_too_and_a_killed_pages_folder_goes_at_the_next_start(tmp_path):
    run = make_run(tmp_path / "mine")
    with serving(tmp_path, run=run) as site:
        [own] = (tmp_path / "tmp").glob("secvit_app_*")
        calls = json.loads(send(site, "GET", "/config")[1])["dependencies"]
        [keep] = [call["id"] for call in calls if len(call["inputs"]) == 22]
        half = given(None)[1:]
        body = {"data": [False, None, *half, *half], "fn_index": keep, "session_hash": "s"}
        status, answer = send(site, "POST", "/gradio_api/run/predict", json.dumps(body), JSON)
        assert status == 200, answer
        [picture] = own.rglob("*_clusters.png")
        assert picture.is_relative_to(own / "gradio_temp_dir")
        site.server.kill()
        site.server.wait()
        assert own.is_dir()
    with serving(tmp_path, run=run):
        assert not own.exists()
        assert len(list(Path(tmp_path, "tmp").glob("secvit_app_*"))) == 1
