"""The page in a real browser, and the same for programs."""

import importlib.util
import os
import socket
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.app.make import find_chromium, make_run, serving

MISSING = [
    what
    for what, there in {
        "gradio": importlib.util.find_spec("gradio"),
        "playwright": importlib.util.find_spec("playwright"),
        "a Chromium": find_chromium(),
    }.items()
    if not there
]
if MISSING and os.environ.get("NEEDS_BROWSER"):
    raise RuntimeError(f"no {', no '.join(MISSING)}")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no {', no '.join(MISSING)}; make test-app installs them")

MB = 1024**2
SECONDS = 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="module")
def site(folder):
    run = make_run(folder / "mine")
    with serving(folder, run=run, max_upload_mb=1) as address:
        yield address


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium, site):
    """The page with its first picture, and the addresses that it asked for."""
    tab = chromium.new_page()
    tab.set_default_timeout(120 * SECONDS)
    tab.asked = []
    tab.on("request", lambda request: tab.asked.append(request.url))
    tab.goto(site)
    tab.wait_for_selector("#cam_a img")
    yield tab
    tab.close()


@pytest.fixture
def photo(tmp_path):
    """A CMYK photo that lies on its side until its EXIF is read: 60 x 90 px upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "leaves.jpg"
    pixels = np.random.default_rng(1).integers(0, 255, (60, 90, 4), dtype=np.uint8)
    Image.fromarray(pixels, mode="CMYK").save(path, exif=exif)
    return str(path)


def shown(tab, name):
    return tab.get_attribute(f"#{name} img", "src")


def wait_for_another(tab, name, before):
    changed = """([name, before]) => {
        const picture = document.querySelector(`#${name} img`);
        return picture && picture.complete && picture.getAttribute("src") != before;
    }"""
    tab.wait_for_function(changed, arg=[name, before])


def wait_for_number(tab, name, pattern):
    """Until the table of numbers says so."""
    tab.wait_for_function(
        "([name, pattern]) => RegExp(pattern).test(document.querySelector(`#${name}`).innerText)", arg=[name, pattern]
    )


def test_a_visitor_uploads_changes_clusters_compares_and_downloads(tab, photo, tmp_path):
    first = shown(tab, "clusters_a")
    tab.set_input_files("input[type=file]", photo)
    wait_for_another(tab, "clusters_a", first)
    assert tab.eval_on_selector("#clusters_a img", "it => [it.naturalWidth, it.naturalHeight]") == [640, 960]  # upright

    uploaded = shown(tab, "clusters_a")
    tab.get_by_label("number of clusters").first.check()
    tab.get_by_label("number input for How many").first.fill("3")
    wait_for_another(tab, "clusters_a", uploaded)
    wait_for_number(tab, "numbers_a", r"clusters\s+3")

    tab.locator("#compare input").check()
    tab.wait_for_selector("#cam_b img")
    assert shown(tab, "clusters_b") != shown(tab, "clusters_a")
    wait_for_number(tab, "numbers_b", r"clusters\s+8")

    with tab.expect_download() as download:
        tab.get_by_role("button", name="Download the picture").click()
    assert download.value.suggested_filename == "leaves_clusters.png"
    download.value.save_as(tmp_path / "kept.png")
    with Image.open(tmp_path / "kept.png") as kept:
        assert kept.width > 1000 and kept.height > 1000  # two rows of three panels

    hosts = {urlsplit(url).hostname for url in tab.asked if not url.startswith(("data:", "blob:"))}
    assert hosts == {"127.0.0.1"}


def test_a_click_shows_what_the_token_there_attends_to(tab):
    tab.locator("#clusters_a img").click(position={"x": 30, "y": 20})
    tab.wait_for_selector("#attention_a img")
    first = shown(tab, "attention_a")
    tab.get_by_label("tree").first.check()
    wait_for_another(tab, "attention_a", first)
    tab.locator("#asks_a input").uncheck()
    tab.wait_for_selector("#attention_a img", state="hidden")


def test_another_photo_stage_and_model_are_a_click_or_two_away(tab):
    first = shown(tab, "clusters_a")
    tab.locator("#bundled button.thumbnail-item, #bundled button.thumbnail-lg").nth(1).click()
    wait_for_another(tab, "clusters_a", first)
    second = shown(tab, "clusters_a")
    tab.get_by_label("2", exact=True).first.check()
    wait_for_another(tab, "clusters_a", second)
    wait_for_number(tab, "numbers_a", "head 1 of 4")
    tab.get_by_label("Model").first.click()
    tab.get_by_role("option", name="secvit_nano.clothing10").click()
    wait_for_number(tab, "numbers_a", r"head 1 of 2[^]*grid\s+28 × 19")


def test_a_file_over_the_limit_is_answered_with_a_message(tab, tmp_path):
    before = shown(tab, "clusters_a")
    (tmp_path / "large.png").write_bytes(os.urandom(MB + 1))
    tab.set_input_files("input[type=file]", tmp_path / "large.png")
    tab.wait_for_selector("text=/maximum allowed size/i")
    assert shown(tab, "clusters_a") == before


@pytest.mark.parametrize("content", [b"no picture at all", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x40\0\0\0\x40"])
def test_a_broken_file_is_answered_with_a_message(tab, tmp_path, content):
    (tmp_path / "holiday.png").write_bytes(content)
    tab.set_input_files("input[type=file]", tmp_path / "holiday.png")
    message = tab.wait_for_selector("text=/holiday\\.png: (not an image|broken or truncated)/")
    assert "secvit_app_" not in message.inner_text()


def client_of(site, folder):
    from gradio_client import Client

    return Client(site, verbose=False, download_files=folder)


def test_programs_get_the_same(site, photo, tmp_path):
    from gradio_client import exceptions, handle_file

    client = client_of(site, tmp_path)
    ask = {"photo": handle_file(photo), "partition": "window", "api_name": "/clusters"}
    clusters, cam, classes, numbers = client.predict(stage=2, counted="number of clusters", count=4, **ask)
    for file in (clusters, cam):
        with Image.open(file) as picture:
            assert picture.size == (640, 960)
    assert set(classes) == {"cat", "dog", "bird"}
    assert numbers["clusters"] == 4 and numbers["network (ms)"] > 0
    with pytest.raises(exceptions.AppError, match="has heads 1 to 2"):
        client.predict(head=3, **ask)
    ask = {"photo": handle_file(photo), "x": 30, "partition": "tree", "near": 2, "far": True, "api_name": "/attends"}
    with Image.open(client.predict(**ask)) as attention:
        assert attention.width > 3 * 400  # three panels
    with pytest.raises(exceptions.AppError, match="x: 101; give a whole number from 0 to 100"):
        client.predict(**{**ask, "x": 101})


def test_other_computers_cannot_reach_it_and_a_taken_port_is_named(site, tmp_path):
    port = urlsplit(site).port
    with (
        pytest.raises(RuntimeError, match=f"cannot listen at 127.0.0.1, port {port}"),
        serving(tmp_path, port=port),
    ):
        pass
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port), timeout=5)  # answered by a server that listens everywhere


def test_nothing_is_written_but_a_folder_that_goes(photo, tmp_path):
    from gradio_client import handle_file

    folder = tmp_path / "app"
    with serving(folder, run=make_run(tmp_path / "mine")) as site:
        client_of(site, tmp_path).predict(photo=handle_file(photo), api_name="/clusters")
        [own] = (folder / "tmp").glob("secvit_app_*")
        assert list(own.rglob("leaves.jpg")) and list(own.rglob("china.jpg"))
    assert [path for path in folder.rglob("*") if path.is_file() or "secvit" in path.name] == []
