"""Who may talk to the page and how much they may send, without a server."""

import asyncio
import socket

import pytest

from secvit.app import guard as guarding
from secvit.app.guard import MB, Guard, split_host

PORT = 7860
OWN = f"127.0.0.1:{PORT}"


async def page(scope, receive, send):
    """Reads the body whole and says how long it is."""
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RuntimeError("the rest never came")
        length, more = length + len(message["body"]), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(length).encode()})


def ask(guard, *headers, method="GET", path="/config", body=(b"",), server=("127.0.0.1", PORT), type_="http"):
    """Status and text.  A piece None of the body never comes."""
    pieces, answers = list(body), []

    async def receive():
        if not pieces:
            return {"type": "http.disconnect"}
        piece = pieces.pop(0)
        if piece is None:
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message):
        answers.append(message)

    scope = {"type": type_, "path": path, "server": server, "headers": [(k.encode(), v.encode()) for k, v in headers]}
    if type_ == "http":
        scope["method"] = method
    asyncio.run(guard(scope, receive, send))
    if type_ == "websocket":
        return answers[0]["type"], answers[0].get("reason", "")
    return answers[0]["status"], b"".join(answer.get("body", b"") for answer in answers).decode()


def status(host, *headers, guard=None, **more):
    return ask(guard or Guard(page, "127.0.0.1"), ("host", host), *headers, **more)[0]


@pytest.mark.parametrize(
    "host", [OWN, f"localhost:{PORT}", f"LocalHost:{PORT}", f"[::1]:{PORT}", f"[0:0:0:0:0:0:0:1]:{PORT}"]
)
def test_own_names_with_the_port_are_answered(host):
    assert status(host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", f"evil.example:{PORT}", "localhost", "127.0.0.1", f"localhost:{PORT + 1}", f"localhost.:{PORT}",
        f"127.0.0.1.evil.example:{PORT}", f"evil@{OWN}", f"{OWN}@evil", f"{OWN}, evil", f"{OWN}/", f" {OWN}", f"{OWN}\n",
        f"0.0.0.0:{PORT}", f"127.0.0.2:{PORT}", f"127.1:{PORT}", f"2130706433:{PORT}", f"::1:{PORT}", f"[::1:{PORT}", "",
        f"[::]:{PORT}", f"localhost:0{PORT}0", "localhost:", f"xn--localhost:{PORT}", "localhost:٧٨٦٠",
    ],
)  # fmt: skip
def test_foreign_names_get_403_and_a_reason(host):
    code, text = ask(Guard(page, "127.0.0.1"), ("host", host.encode().decode("latin-1")))
    assert code == 403 and "is not a name of this page" in text and "--allow_hosts" in text


def test_no_name_and_two_names_get_403():
    guard = Guard(page, "127.0.0.1")
    assert ask(guard)[0] == 403
    assert ask(guard, ("host", OWN), ("host", "evil.example"))[0] == 403
    assert ask(guard, ("host", OWN), ("host", OWN))[0] == 403


@pytest.mark.parametrize("origin", [f"http://{OWN}", f"http://localhost:{PORT}", f"http://[::1]:{PORT}"])
def test_the_page_itself_may_send(origin):
    assert status(OWN, ("origin", origin), ("sec-fetch-site", "same-origin"), method="POST") == 200


@pytest.mark.parametrize(
    "origin",
    ["null", "", "http://evil.example", f"http://localhost:{PORT + 1}", "http://localhost", f"https://{OWN}", "file://",
     f"http://{OWN}/", f"http://{OWN}.evil.example", "chrome-extension://abc", OWN],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/queue/data"])
def test_other_sites_may_not(origin, path):
    code, text = ask(Guard(page, "127.0.0.1"), ("host", OWN), ("origin", origin), method="POST", path=path)
    assert code == 403 and "another site" in text


def test_a_second_origin_does_not_slip_through():
    assert status(OWN, ("origin", f"http://{OWN}"), ("origin", "http://evil.example")) == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])  # another port of localhost is the same site
def test_other_sites_may_link_to_the_page_but_neither_frame_nor_load_nor_send(site):
    to = ("sec-fetch-site", site)
    assert status(OWN, to, ("sec-fetch-dest", "document")) == 200
    assert status(OWN, to, ("sec-fetch-dest", "iframe")) == 403
    assert status(OWN, to, ("sec-fetch-dest", "image")) == 403
    assert status(OWN, to, ("sec-fetch-dest", "document"), method="POST") == 403
    assert status(OWN, to) == 403


def test_a_websocket_is_asked_the_same():
    assert ask(Guard(page, "127.0.0.1"), ("host", "evil.example"), type_="websocket")[0] == "websocket.close"
    origin = ("origin", "http://evil.example")
    assert ask(Guard(page, "127.0.0.1"), ("host", OWN), origin, type_="websocket")[0] == "websocket.close"


def test_at_all_addresses_the_computers_names_and_the_address_it_is_reached_at_are_its_own():
    guard = Guard(page, "0.0.0.0")
    reached = {"guard": guard, "server": ("192.0.2.7", PORT)}
    computer = socket.gethostname()
    assert status(f"192.0.2.7:{PORT}", ("origin", f"http://192.0.2.7:{PORT}"), **reached) == 200
    assert status(f"{computer}:{PORT}", **reached) == status(f"localhost:{PORT}", **reached) == 200
    assert status(f"192.0.2.8:{PORT}", **reached) == status(f"evil.example:{PORT}", **reached) == 403
    assert status(f"{computer}:{PORT}") == (200 if computer == "localhost" else 403)  # 127.0.0.1 alone has no such name
    six = {"guard": Guard(page, "[::]"), "server": ("::ffff:192.0.2.7", PORT)}
    assert status(f"192.0.2.7:{PORT}", **six) == 200


def test_a_host_of_ones_own_is_answered_in_any_spelling():
    assert status(f"my-computer.LOCAL:{PORT}", guard=Guard(page, "My-Computer.local")) == 200
    assert status(f"[2001:db8::1]:{PORT}", guard=Guard(page, "2001:DB8:0::1")) == 200


def test_further_names_are_answered_when_named():
    guard = Guard(page, "127.0.0.1", ["page.example", "localhost:8080"])
    assert status("page.example", ("origin", "https://page.example"), guard=guard) == 200  # behind a proxy
    assert status(f"page.example:{PORT}", ("origin", f"http://page.example:{PORT}"), guard=guard) == 200
    assert status("localhost:8080", ("origin", "http://localhost:8080"), guard=guard) == 200  # a forwarded port
    assert status("page.example:81", guard=guard) == status("sub.page.example", guard=guard) == 403
    assert status("localhost:8081", guard=guard) == 403


@pytest.mark.parametrize("name", ["http://page.example", "*", "page.example/", "a:b", "", "::1"])
def test_a_name_that_is_none_is_refused_at_the_start(name):
    with pytest.raises(ValueError, match="allow_hosts: .*; give NAME or NAME:PORT"):
        Guard(page, "127.0.0.1", [name])


def test_split_host():
    assert split_host("[::1]:80") == ("::1", 80) and split_host("A.b") == ("a.b", None)


LARGE = [b"x" * (MB // 4)] * 8


def test_a_body_up_to_the_limit_is_read():
    code, text = ask(Guard(page, "127.0.0.1"), ("host", OWN), method="POST", body=LARGE[:4])
    assert (code, text) == (200, str(MB))


def test_a_body_that_says_it_is_large_is_refused_before_the_page_reads_any():
    asked = []

    async def never(*scope):
        asked.append(scope)

    headers = ("host", OWN), ("content-length", str(30 * MB)), ("content-type", "application/json")
    code, text = ask(Guard(never, "127.0.0.1"), *headers, method="POST", body=LARGE)
    assert code == 413 and asked == []
    assert text == '{"error": "a body of more than 1 MB; give settings here, and photos to /gradio_api/upload"}'
    assert status(OWN, ("content-length", "9" * 5000), method="POST") == 413


def test_a_body_of_unknown_length_is_refused_as_soon_as_it_is_too_large():
    taken = []

    async def counting(scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            taken.append(message["body"])

    code, _ = ask(Guard(counting, "127.0.0.1"), ("host", OWN), method="POST", body=LARGE * 10)
    assert code == 413 and sum(map(len, taken)) <= MB


def test_uploads_have_a_limit_of_their_own_and_are_given_room():
    made = []
    guard = Guard(page, "127.0.0.1", max_upload_mb=3, make_room=lambda: made.append(1))
    upload = {"method": "POST", "path": "/gradio_api/upload"}
    assert status(OWN, guard=guard, body=LARGE, **upload) == 200 and made == [1]
    code, text = ask(guard, ("host", OWN), body=LARGE * 3, **upload)
    assert code == 413 and "more than 3 MB" in text and "--max_upload_mb" in text


def test_a_body_that_stops_coming_is_answered_and_not_waited_for(monkeypatch):
    monkeypatch.setattr(guarding, "PATIENCE", 0.05)
    code, text = ask(Guard(page, "127.0.0.1"), ("host", OWN), method="POST", body=[b"x", None])
    assert code == 408 and "send it again" in text


def test_a_failure_is_a_sentence_and_prints_nothing_of_what_was_sent(capsys):
    async def failing(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 500, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"Traceback ..."})
        raise KeyError("secret")

    headers = ("host", OWN), ("content-type", "application/json")
    code, text = ask(Guard(failing, "127.0.0.1"), *headers, method="POST")
    assert code == 400 and text.startswith('{"error": "this cannot be answered (KeyError: \'secret\'); ')
    said = capsys.readouterr().out
    assert said.startswith("secvit app: KeyError at ") and "secret" not in said


def test_an_error_of_the_pages_own_is_passed_on():
    async def told(scope, receive, send):
        await send({"type": "http.response.start", "status": 500, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": b'{"error": "stage 9"}'})

    assert ask(Guard(told, "127.0.0.1"), ("host", OWN)) == (500, '{"error": "stage 9"}')
