"""`ur4rec serve`: what its server answers and refuses, and the page in a real browser."""

import http.client
import io
import json
import logging
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.integration.browser import BROWSER
from tests.integration.tiny_run import COMMAND, ENVIRONMENT, invoke, mistaken
from ur4rec.serve import server
from ur4rec.serve.app import HEADERS, MAX_BODY_BYTES

EVIL = "<img src=x onerror=document.title='obeyed'><script>document.title='obeyed'</script>"
NUM_ITEMS = 24


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on data whose every title is hostile."""
    folder = tmp_path_factory.mktemp("serve")
    data, draws = folder / "data", np.random.default_rng(0)
    data.mkdir()
    titles = [f"item {number} {EVIL}\x1b[2J\u202e" for number in range(NUM_ITEMS)]
    rows = [
        f"{EVIL}{user},{item},{step}"
        for user in range(30)
        for step, item in enumerate(draws.permutation(NUM_ITEMS)[:8])
    ]
    (data / "interactions.csv").write_text("\n".join(["user,item,timestamp", *rows]))
    items = [f'{number},"{title}"' for number, title in enumerate(titles)]
    (data / "items.csv").write_text("\n".join(["item,title", *items]))
    out = folder / "<b>run"
    stages = ("pretrain_sasrec", "pretrain_retriever", "joint_finetune", "end_to_end")
    epochs = [part for stage in stages for part in ("--epochs", f"{stage}={int(stage != 'end_to_end')}")]
    assert invoke("train", "--dataset", data, "--preset", "smoke", *epochs, "--out", out, "--quiet").exit_code == 0
    return out


@pytest.fixture(scope="module")
def port(run):
    """The port of the server, which must end in peace when it is interrupted."""
    command = [*COMMAND, "serve", str(run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        try:
            line = process.stdout.readline()
            assert "http://127.0.0.1:" in line
            yield int(line.partition("http://127.0.0.1:")[2].partition("/")[0])
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=120) == 0


def ask(port, path, *, body=None, host=None, kind="application/json"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    headers = {"Host": host or f"127.0.0.1:{port}"} | ({} if body is None else {"Content-Type": kind})
    connection.request("GET" if body is None else "POST", path, body=body, headers=headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def told(port, path, **options):
    answer, content = ask(port, path, **options)
    return answer.status, json.loads(content)


def recommend(port, **asked):
    return told(port, "/api/recommend", body=json.dumps(asked))


def test_the_run_is_described(port, run):
    status, found = told(port, "/api/run")
    assert (status, found["name"]) == (200, run.name)
    assert "30 users, 24 items, 240 interactions" in found["facts"]
    final = json.loads((run / "metrics.json").read_text())["final"]
    assert {row["name"]: row["test"] for row in found["results"]} == {name: row["test"] for name, row in final.items()}
    answer, picture = ask(port, "/schedule.png")
    assert answer.getheader("content-type") == "image/png"
    assert picture == (run / "schedule.png").read_bytes()


def test_items_are_found_by_title_and_id_and_users_by_id(port):
    _, found = told(port, "/api/items?q=ITEM%2013")
    assert [each["title"][:8] for each in found] == ["item 13 "]
    assert "\x1b" not in found[0]["title"]
    assert "\\u001b" in found[0]["title"]
    assert "\\u202e" in found[0]["title"]
    _, by_id = told(port, "/api/items?q=7")
    assert by_id[0]["label"].endswith("(7)")
    _, users = told(port, "/api/users?q=%3Cimg")
    assert len(users) == 12
    assert all(user["label"].startswith(EVIL) for user in users)


def test_each_scorer_recommends_what_it_finds_likeliest_and_says_why(port, run):
    _, history = told(port, f"/api/history?user={EVIL.replace(' ', '%20')}3".replace("<", "%3C").replace(">", "%3E"))
    items = [item["index"] for item in history]
    assert len(items) == 8
    status, found = recommend(port, items=items, user=f"{EVIL}3", top=5)
    assert status == 200
    assert found["read"] == 8
    for scorer, ranking in found["lists"].items():
        shares = [item["probability"] for item in ranking]
        assert len(shares) == 5, scorer
        assert shares == sorted(shares, reverse=True)
        assert min(shares) > 0
        assert not set(items) & {item["index"] for item in ranking}
        assert all(sum(item["weights"]) == pytest.approx(1, abs=1e-5) for item in ranking)
        assert {len(item["weights"]) for item in ranking} == {8}
    fused = json.loads(invoke("recommend", run, "--user", f"{EVIL}3", "--top", 5, "--json").stdout)
    assert [item["probability"] for item in found["lists"]["fused"]] == pytest.approx(
        [item["probabilities"]["fused"] for item in fused], rel=1e-4
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"items": [], "user": None, "top": 5}, "a history must have at least one item"),
        ({"items": [NUM_ITEMS], "user": None, "top": 5}, f"an item must be an integer of at most {NUM_ITEMS - 1}"),
        ({"items": ["1"], "user": None, "top": 5}, "an item must be an integer"),
        ({"items": [1], "user": None, "top": 0}, "top must be an integer of at least 1"),
        ({"items": [1], "user": "nobody", "top": 5}, "unknown user 'nobody'"),
        ({"items": [1], "user": 3, "top": 5}, "a request must be"),
        ({"items": 1, "user": None, "top": 5}, "a request must be"),
        ({"items": [1] * 10_001, "user": None, "top": 5}, "at most 10000 items, got 10001"),
        ({"items": list(range(NUM_ITEMS)), "user": None, "top": 5}, f"got all {NUM_ITEMS}"),
        ({"items": list(range(NUM_ITEMS)), "user": None, "top": 5}, "name another user, or exclude less"),  # its remedy
    ],
)
def test_a_wrong_question_is_answered_in_one_line(port, asked, message):
    status, answer = recommend(port, **asked)
    assert status == 400
    assert message in answer["error"]
    assert "\n" not in answer["error"]


def test_what_is_no_question_of_the_page_is_refused(port):
    assert told(port, "/api/recommend", body="[1", kind="application/json")[0] == 400
    assert told(port, "/api/recommend", body="[1]")[1]["error"] == "a request must be a JSON object, got list"
    assert told(port, "/api/recommend", body='{"items": [1]}', kind="text/plain")[0] == 415  # a form's, from any page
    assert told(port, "/api/recommend", body=" " * (MAX_BODY_BYTES + 1))[0] == 413
    assert told(port, "/api/items?indices=1,x")[0] == told(port, "/api/items?indices=99")[0] == 400
    assert told(port, "/api/items")[1]["error"] == "the address must have ?q=..., it has not"
    assert told(port, "/etc/passwd")[0] == 404
    assert ask(port, "/api/run", host="evil.example")[0].status == 400  # a name that was pointed to this machine


def test_only_the_pages_own_script_may_run_and_nothing_comes_from_elsewhere(port):
    for path in ("/", "/page.js", "/page.css", "/api/run", "/schedule.png", "/nothing"):
        answer, content = ask(port, path)
        assert {name: answer.getheader(name) for name in HEADERS} == HEADERS, path
        if path in ("/", "/page.js", "/page.css"):
            assert b"http" not in content.replace(b"http-equiv", b""), path  # no address of another machine


@pytest.fixture
def watched():
    """A handler of somebody else's, and what was done to it."""
    done = []
    handler = logging.NullHandler()
    handler.close = lambda: done.append("closed")
    yield done
    del handler.close
    handler.close()


def test_another_checkpoint_is_served_where_one_is_asked_for(run, monkeypatch, watched):
    used, serve_run = [], server.serve_run

    def ready(address, checkpoint):
        used.append(checkpoint)
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "serve_run", lambda *given, **named: serve_run(*given[:2], ready, **named))
    for words, name in (((), "best"), (("--checkpoint", "latest"), "latest")):
        assert invoke("serve", run, "--port", "0", *words).exit_code == 0
        assert used.pop() == name
    assert watched == [], "the server configured other loggers"
    assert "has no refit checkpoint yet" in mistaken("serve", run, "--port", "0", "--checkpoint", "refit")


def test_a_port_that_is_taken_is_one_line(port, run):
    assert f"--port must be free and allowed, {port} is not" in mistaken("serve", run, "--port", port)


def test_only_this_machine_is_listened_to(port):
    sockets = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()]
    listening = [address for address in sockets if address.endswith(f":{port:04X}")]
    assert listening
    assert all(address.startswith("0100007F:") for address in listening)


@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on the PATH")
def test_the_page_in_a_browser(port, tmp_path):
    from playwright.sync_api import sync_playwright

    address = f"http://127.0.0.1:{port}/"
    asked, problems = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"], timeout=300_000)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(300_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address)
        page.wait_for_selector("body[data-ready]")
        _type_a_history(page)
        _look_at_the_answers(page)
        picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("L")
        _look_at_the_screenshot(page, np.asarray(picture))
        again = browser.new_page()
        again.goto(page.url)  # the address holds the history
        again.wait_for_selector("[data-scorer=fused] li")
        assert again.locator("#history li").all_inner_texts() == page.locator("#history li").all_inner_texts()
        page.get_by_role("button", name="Clear").click()
        page.wait_for_selector("#history li", state="detached")
        page.fill("#user", "<img")
        page.locator("#user-choices [role=option]").nth(2).click()
        page.wait_for_selector("#history li:nth-child(8)")
        assert page.title().endswith("· UR4Rec")
        assert again.title().endswith("· UR4Rec")
        browser.close()
    assert all(url.startswith(address) for url in asked)
    assert not problems


def _type_a_history(page):
    for typed in ("item 3", "item 5", "item 11"):
        page.fill("#item", typed)
        page.wait_for_selector("#item-choices [role=option]")
        assert page.locator("#item-choices [role=option]").first.inner_text().startswith(f"{typed} <img src=x")
        page.press("#item", "Enter")
        page.wait_for_selector(f"#history li:first-child .title:has-text('{typed} ')")
    page.wait_for_selector("[data-scorer=fused] li")


def _look_at_the_answers(page):
    heads = page.locator("#lists h3").all_inner_texts()
    assert heads == ["Both fused", "SASRec", "Retriever"]
    for scorer in ("fused", "sasrec", "retriever"):
        assert page.locator(f"[data-scorer={scorer}] li").count() == 10
    weights = page.locator("#history meter").evaluate_all("all => all.map(each => each.value)")
    assert len(weights) == 3
    assert abs(sum(weights) - 1) < 1e-3
    page.locator("[data-scorer=retriever] li button").nth(4).click()
    assert page.locator("#lists [aria-pressed=true]").count() == 1
    title = page.locator("[data-scorer=retriever] li .title").nth(4).inner_text()
    assert title in page.inner_text("#why")
    assert page.locator("#metrics tbody tr").count() >= 4
    assert page.locator("img").evaluate_all("all => all.map(each => each.naturalWidth > 0)") == [True]
    assert page.locator("main script, main img:not(#plot), main [onerror]").count() == 0  # titles are text


def _look_at_the_screenshot(page, picture):
    """Each part is where it should be and shows something: it has edges, and no part lies over another."""
    boxes = {name: page.locator(name).bounding_box() for name in ("#asked", "#answers", "#metrics", "#plot")}
    for name, box in boxes.items():
        left, top = int(box["x"]), int(box["y"])
        part = picture[top : top + int(box["height"]), left : left + int(box["width"])]
        assert part.size > 10_000, name
        assert part.std() > 5, name
    asked, answers, metrics, plot = boxes.values()
    assert asked["x"] + asked["width"] <= answers["x"]
    assert answers["y"] + answers["height"] <= metrics["y"] < metrics["y"] + metrics["height"] <= plot["y"]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
