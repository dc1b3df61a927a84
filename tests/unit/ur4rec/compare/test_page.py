"""The page of a study shows what its files say, and obeys none of it: no script, no link, nothing from elsewhere."""

import json
import subprocess
from html.parser import HTMLParser

import pytest

from tests.integration.browser import BROWSER
from tests.unit.ur4rec.compare.test_packed import RESULTS
from ur4rec.compare.report import literal, render_markdown, render_page

SCRIPT = "<script>document.title='obeyed'</script>"
EVIL = (
    f"x{SCRIPT}</title>{SCRIPT}<img src=x onerror=\"document.title='obeyed'\"> [a](javascript:alert) <b onclick=x>"
    "![b](https://evil.example/b.png) <https://evil.example> [c]: https://evil.example **d** `e` _f_ | &amp; \\ \x1b[2J"
    "\u202e\n\n# g\n\n" + SCRIPT
)
SHOWN = EVIL.replace("\x1b", "\\u001b").replace("\u202e", "\\u202e").replace("\n", "\\u000a")
PNG = b"\x89PNG"
TAGS = {"html", "meta", "title", "style", "h1", "h2", "p", "em", "strong", "code", "pre", "img", "ul", "li"}
TAGS |= {"table", "thead", "tbody", "tr", "th", "td"}


def hostile_markdown():
    """The report of a committed study in which every string that its files choose is hostile."""
    (file,) = RESULTS.glob("schedules_synthetic_*.json")
    text = json.dumps(json.loads(file.read_text()))
    for arm in json.loads(text)["study"]["arms"]:
        if arm != "parity":
            text = text.replace(json.dumps(arm), json.dumps(arm + EVIL))
    summary = json.loads(text)
    names = ("dataset", "joint_loss", "backend")
    strings = {name: EVIL for name, value in summary["facts"].items() if isinstance(value, str)}
    summary["facts"] |= {**strings, "split_hash": SCRIPT, "versions": {EVIL: EVIL}, "num_users": EVIL, "cores": EVIL}
    summary["study"] |= {**dict.fromkeys(names, EVIL), "seeds": [EVIL]}
    summary |= {"command": EVIL, "errors": {EVIL: EVIL}, "commits": [EVIL], "hashes_agree": False}
    summary["costs"]["load_average_before"] = EVIL
    summary["costs"]["seconds"] |= {EVIL: 1.0}
    summary["costs"]["quartiles"] |= {EVIL: [1.0, 1.0]}
    return render_markdown(summary, {"report-quality.png": "Quality"})


@pytest.fixture(scope="module")
def page():
    return render_page(hostile_markdown(), {"report-quality.png": PNG})


class Judge(HTMLParser):
    """Collects the elements of a page, and the text of some."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.texts, self._within = [], {}, []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self._within.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self._within.pop() == tag

    def handle_data(self, data):
        if self._within:
            self.texts[self._within[-1]] = self.texts.get(self._within[-1], "") + data


def test_the_page_holds_only_elements_of_its_own(page):
    judged = Judge(page)
    assert {tag for tag, _ in judged.elements} <= TAGS
    allowed = {"html": {"lang"}, "meta": {"charset", "http-equiv", "content"}, "img": {"src", "alt"}}
    for tag, attributes in judged.elements:
        assert set(attributes) <= allowed.get(tag, {"style"} if tag in ("th", "td") else set()), (tag, attributes)
    assert [found["src"][:22] for tag, found in judged.elements if tag == "img"] == ["data:image/png;base64,"]
    assert sum(tag == "h1" for tag, _ in judged.elements) == sum(tag == "style" for tag, _ in judged.elements) == 1


def test_a_policy_forbids_scripts_before_anything_else_is_read(page):
    (_, charset), (_, policy) = [(tag, found) for tag, found in Judge(page).elements if tag == "meta"]
    assert charset == {"charset": "utf-8"}
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert page.index("Content-Security-Policy") < page.index("<title>")


def test_what_the_files_say_is_shown_as_it_is(page):
    texts = Judge(page).texts
    for tag in ("title", "h1", "td", "li", "strong", "code"):
        assert SHOWN in texts[tag], tag
    assert not {"\x1b", "\u202e"} & set(page)


def test_the_markdown_shows_the_same_where_html_and_links_are_obeyed():
    from markdown_it import MarkdownIt

    judged = Judge(MarkdownIt("commonmark").enable("table").render(hostile_markdown()))
    assert {tag for tag, _ in judged.elements} <= TAGS
    assert [found["src"] for tag, found in judged.elements if tag == "img"] == ["report-quality.png"]


def test_names_of_arms_stay_readable():
    assert literal("matched:random_tenure,mean=3") == "matched:random_tenure,mean=3"


@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on the PATH")
def test_a_browser_runs_nothing_of_the_page(page, tmp_path):
    def title(content):
        (tmp_path / "page.html").write_text(content)
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command += ["--dump-dom", (tmp_path / "page.html").as_uri()]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
        return Judge(shown).texts["title"]

    assert title(f"<!doctype html><html><head><title>x</title>{SCRIPT}</head></html>") == "obeyed"  # it can fail
    policy = page[page.index("<meta http-equiv") : page.index("<title>")]
    assert title(f"<!doctype html><html><head>{policy}<title>x</title>{SCRIPT}</head></html>") == "x"
    assert title(page).startswith("Schedules on x<script>")
