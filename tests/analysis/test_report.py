"""The report: what stands on the page, and that it works in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from analysis import report

RESULTS = Path(__file__).resolve().parents[2] / "results"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")

VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """Tags opened and closed, names of places, links, and the text of the body."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if tag == "a":
            self.links.append(str(given["href"]))
        self.sources += [str(given[key]) for key in ("src", "href") if key in given and tag != "a"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page without its figures, which take most of its time."""
    monkeypatch.setattr(report, "draw_figures", lambda *arguments, **options: [])


def make(runs: Path, out: Path) -> Page:
    arguments = ["--benchmarks", str(RESULTS / "benchmarks"), "--graphs", str(RESULTS / "graphs")]
    assert report.main([str(runs), *arguments, "--out", str(out)]) == 0
    page = Page(out.read_text(encoding="utf-8"))
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    inside = {link[1:] for link in page.links if link.startswith("#")}
    assert inside <= set(page.ids)
    # Nothing comes from elsewhere, and what lies outside is the runs' records.
    assert all(source.startswith("data:") for source in page.sources)
    for link in page.links:
        assert link.startswith("#") or (out.parent / link).is_file(), link
    page.text = " ".join(page.text.split())
    return page


@pytest.mark.usefixtures("no_figures")
def test_without_records_every_cell_is_missing(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = make(runs, tmp_path / "report.html")
    assert "0 ✓ reproduced 0 ? inconclusive 0 ✗ differs 0 ○ not judged 87 · missing of 87 cells" in page.text
    assert "make reproduce TABLE=2 makes them" in page.text
    assert "make reproduce TABLE=2 ENGINE=exact" in page.text
    shown = capsys.readouterr().out
    assert "· missing: 87" in shown
    assert shown.splitlines()[-1] == f"written: {tmp_path}/report.html"


@pytest.mark.usefixtures("no_figures")
def test_every_number_of_ours_links_to_its_runs_and_their_command(runs: Path, write_run: Any, tmp_path: Path) -> None:
    for seed in range(2):
        folder = write_run(seed=seed).parent
        (folder / "command.sh").write_text(f"#!/bin/sh\npython -m experiments.run method=sgd seed={seed}\n")
    page = make(runs, tmp_path / "report.html")
    assert "runs-run-000" in page.ids
    # The grid, the numbers of three tables, the clocks, and contexts of claims: 3 of accuracy or steps, 3 + 3 of times,
    # and 2 of the gap between architectures.
    assert page.links.count("#runs-run-000") == 1 + 3 + 2 + 6 + 5 + 3 + 6 + 2
    assert {f"runs/run-00{seed}/record.json" for seed in (0, 1)} <= set(page.links)
    for seed in range(2):
        assert f"python -m experiments.run method=sgd seed={seed}" in page.text
    first = (tmp_path / "report.html").read_bytes()
    make(runs, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_bytes() == first
    assert "device: synthetic device" in page.text
    assert "Ended by" in page.text


@pytest.mark.usefixtures("no_figures")
def test_exact_operators_stand_beside_the_papers(runs: Path, write_run: Any, tmp_path: Path) -> None:
    for seed in range(3):
        for engine, gain in (("published", 0.0), ("exact", 0.02)):
            accuracy = 0.9 + gain + 0.001 * seed
            write_run(seed=seed, cell__method="dr", cell__engine=engine, metrics__test_accuracy=accuracy)
    text = make(runs, tmp_path / "report.html").text
    assert re.search(r"MNIST 1 x 128 DR 3 / 3 90\.1 ± 0\.1 92\.1 ± 0\.1 \+2\.0 \[\+1\.\d, \+2\.\d\] 1\.00", text)


@pytest.mark.usefixtures("no_figures")
def test_other_methods_have_a_section_where_there_are_runs_of_them(runs: Path, write_run: Any, tmp_path: Path) -> None:
    write_run(cell__method="adam")
    before = make(runs, tmp_path / "report.html")
    assert "beyond" not in before.ids
    run = write_run(cell__method="displacement", metrics__test_accuracy=0.9876).parent
    (tmp_path / "beyond").mkdir()
    run.rename(tmp_path / "beyond" / run.name)
    page = make(runs, tmp_path / "report.html")
    assert "MNIST MLP 1 x 128 Displacement * 0 98.76" in page.text
    assert {"beyond", "curves"} <= set(page.ids)
    assert len(page.sources) == len(before.sources) + 1


@pytest.mark.usefixtures("no_figures")
def test_a_claim_opens_to_what_each_context_says_and_to_its_runs(runs: Path, write_run: Any, tmp_path: Path) -> None:
    for seed in range(3):
        for method, accuracy in {"dr": 0.90, "ap": 0.95}.items():
            cell = {"cell__method": method, "cell__engine": "published"}
            write_run(seed=seed, metrics__test_accuracy=accuracy + 0.002 * seed, **cell)
    out = tmp_path / "report.html"
    text = make(runs, out).text
    # What speaks comes first: our records contradict where the paper's tables agree.
    first = "1 contradict, 8 missing Context Ours Published Our runs MLP MNIST shallow contradict agree 1 x 128 DR"
    assert f"{first} , 1 x 128 AP MLP MNIST deep missing agree — " in text
    row = re.search(r'<tr id="claim-dr-above-ap-mlp">.*?</details>', out.read_text(encoding="utf-8"), re.DOTALL)
    assert row
    assert re.findall(r'href="#(.*?)"', row.group()) == ["runs-run-000", "runs-run-001"]


@pytest.mark.usefixtures("no_figures")
def test_other_presets_and_subsets_are_kept_apart(runs: Path, write_run: Any, tmp_path: Path) -> None:
    write_run(preset="quick", metrics__test_accuracy=0.123)
    write_run(data__subset=True, data__n_train=100)
    text = make(runs, tmp_path / "report.html").text
    assert "Preset quick: means of our runs; published accuracy for orientation" in text
    assert "MNIST 1 x 128 SGD * 0 12.3 96.8 ± 0.1 9,000 256 54,000 0.250" in text
    assert "Not listed: 86 of the paper's 87 cells without a run." in text
    assert "1 ○ not judged 86 · missing" in text


@pytest.mark.usefixtures("no_figures")
def test_all_cells_are_shown(runs: Path, write_all: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_all(1)
    out = tmp_path / "report.html"
    page = make(runs, out)
    assert "0 · missing of 87 cells" in page.text
    assert sum(name.startswith("runs-") for name in page.ids) == 87
    assert "No runs" not in page.text.replace("No runs with engine=exact yet", "")
    assert capsys.readouterr().out.count("? 1") == 87


@pytest.mark.usefixtures("no_figures")
def test_text_of_records_is_shown_and_not_run(runs: Path, write_run: Any, tmp_path: Path) -> None:
    write_run(environment__device="<script>alert(1)</script>")
    make(runs, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


@pytest.mark.usefixtures("no_figures")
def test_what_cannot_be_used_or_written_is_named(
    runs: Path, write_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run()
    (tmp_path / "file").touch()
    assert report.main([str(runs), "--out", str(tmp_path / "file" / "report.html")]) == 1
    assert "error: the report cannot be written to " in capsys.readouterr().err
    path.write_text("{")
    assert report.main([str(runs)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {path}: not valid JSON")


CHECKS = r"""
<script>
const found = {errors: []};
window.addEventListener("error", (event) => found.errors.push(String(event.message)));
const tables = Array.from(document.querySelectorAll("#table2 table"));
const visible = (rows) => Array.from(rows).filter((row) => !row.hidden);
const column = (table, i) => visible(table.tBodies[0].rows).map((row) => row.cells[i].textContent);
const header = (table, text) => Array.from(table.querySelectorAll("th button")).find((b) => b.textContent === text);
header(tables[0], "Accuracy (%) ours").click();
found.ascending = column(tables[0], 3);
header(tables[0], "Accuracy (%) ours").click();
found.descending = column(tables[0], 3);
found.sorted = header(tables[0], "Accuracy (%) ours").parentElement.getAttribute("aria-sort");
header(tables[0], "Method").click();
found.methods = column(tables[0], 1);
const box = document.querySelector("#table2 input[type=search]");
box.value = "mnist 4 x 128 adam";
box.dispatchEvent(new Event("input"));
found.filtered = column(tables[0], 0).map((text) => text.replaceAll("\u00a0", " "));
box.value = "";
box.dispatchEvent(new Event("input"));
const place = (element) => element.getBoundingClientRect();
found.scroll = [];
found.adrift = [];
document.querySelectorAll(".wide > table").forEach((table) => {
  const frame = table.parentElement, cell = table.querySelector("tr:not(.title) > td");
  if (frame.scrollWidth > frame.clientWidth) found.scroll.push(table.className);
  frame.scrollLeft = 60;
  const opaque = getComputedStyle(cell).backgroundColor === "rgb(255, 255, 255)";
  if (Math.abs(place(cell).left - place(frame).left) > 1 || !opaque) found.adrift.push(table.className);
  frame.scrollLeft = 0;
});
found.answer = place(document.querySelector("#claims td.outcome")).right;
found.least = ["img", "td.command", "td.device"].map((name) => place(document.querySelector(name)).width);
const absent = document.querySelector("#table2 input[type=checkbox]");
absent.checked = true;
absent.dispatchEvent(new Event("change"));
found.present = column(tables[0], 0).length;
const runs = document.querySelector("#runs input[type=search]");
runs.value = "nothing like it";
runs.dispatchEvent(new Event("input"));
found.hidden = visible(document.querySelectorAll("#runs table.runs tbody tr")).length;
tables[0].querySelector("td.ours a").click();
setTimeout(() => {
  found.target = document.querySelector(":target") ? document.querySelector(":target").id : null;
  found.shown = visible(document.querySelectorAll(":target tr")).length;
  found.width = [document.documentElement.scrollWidth, document.documentElement.clientWidth];
  found.images = Array.from(document.images).every((image) => image.complete && image.naturalWidth > 0);
  found.marked = getComputedStyle(document.querySelector(":target td")).backgroundColor;
  document.querySelector("nav a[href='#claims']").click();
  setTimeout(() => {
    const nav = place(document.querySelector("nav"));
    found.nav = [nav.top, nav.bottom, place(document.querySelector("#claims h2")).top];
    document.title = "checked";
    document.body.innerHTML = "<pre id='found'></pre>";
    document.getElementById("found").textContent = JSON.stringify(found);
  }, 300);
}, 300);
</script>
"""


@needs_browser
def test_the_page_works_in_a_browser_also_on_a_phone(runs: Path, write_run: Any, tmp_path: Path) -> None:
    for method, accuracy in {"sgd": 0.9, "adam": 1.0, "dr": 0.095}.items():
        engine = "published" if method == "dr" else None
        write_run(cell__method=method, cell__engine=engine, metrics__test_accuracy=accuracy)
    page = make(runs, tmp_path / "report.html")
    assert {f"figure{number}" for number in (3, 4, 5, 6, 7)} < set(page.ids)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    (tmp_path / "inner.html").write_text(text.replace("</body>", f"{CHECKS}</body>"), encoding="utf-8")
    for width in (390, 1280):
        found = in_browser(tmp_path, width)
        assert found["errors"] == []
        # Numbers sort as numbers, which as text would be 100, 9.5, 90, and what is missing stands last whichever way.
        assert found["ascending"][:4] == ["9.5", "90.0", "100.0", "—"]
        assert found["descending"][:4] == ["100.0", "90.0", "9.5", "—"]
        assert found["sorted"] == "descending"
        assert found["methods"] == sorted(found["methods"], key=str.lower)
        assert found["filtered"] == ["MNIST 4 x 128", "MNIST 4 x 128 + Skip"]
        assert found["present"] == 3
        assert found["hidden"] == 0
        # A link to a run that the filter hid shows it again.
        assert found["target"].startswith("runs-run-00")
        assert found["shown"] == 2
        assert found["marked"] == "rgb(255, 243, 176)"
        assert found["images"]
        # The navigation stays and covers nothing that a link leads to.
        top, bottom, heading = found["nav"]
        assert top == 0 < bottom <= heading < bottom + 60
        # Where a table scrolls, what names its rows does not; figures, commands and devices are never squeezed.
        assert found["adrift"] == []
        assert (len(found["scroll"]) > 5) == (width == 390)
        assert found["answer"] <= width or width > 390
        assert [wide >= least for wide, least in zip(found["least"], (700, 350, 230), strict=True)] == [True] * 3
        assert found["width"][0] <= found["width"][1] <= width


def in_browser(folder: Path, width: int) -> dict[str, Any]:
    """What ``CHECKS`` found in ``inner.html``, shown so many pixels wide."""
    # A browser's own window has a least width, a frame has none.
    frame = f'<iframe id="f" src="inner.html" style="border:0;width:{width}px;height:800px"></iframe>'
    hand = "const d = f.contentDocument; if (d.title === 'checked') document.title = d.body.textContent;"
    outer = f"<!doctype html>{frame}<script>setInterval(() => {{ {hand} }})</script>"
    (folder / "outer.html").write_text(outer, encoding="utf-8")
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=8000", "--enable-logging=stderr"]
    command += ["--window-size=1400,900", "--dump-dom", (folder / "outer.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None, done.stdout[-500:]
    return json.loads(title.group(1).strip())
