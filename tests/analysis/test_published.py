"""The published numbers against the paper's own text, read by a parser that knows nothing of `published.yaml`."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from analysis.published import load_published

PAIR = re.compile(r"(\d+\.\d+)\s*(?:±|\\pm)\s*(\d+\.\d+)")
DATASETS = {
    "MNIST": "mnist",
    "CIFAR-10": "cifar10",
    "CITAR-10": "cifar10",
    "Higgs": "higgs",
    "Shakespeare": "shakespeare",
}
FAMILY = {2: "mlp", 3: "cnn", 4: "rnn"}
Numbers = list[tuple[float, float]]
Key = tuple[int, str, str, str]


def sections(text: str) -> dict[int, str]:
    """The three tables' bodies: what follows each header line, up to the next caption."""
    bodies = re.split(r"^Dataset\tArchitecture\t.*$", text, flags=re.MULTILINE)[1:]
    return {
        number: re.split(r"^Table \d:", body, flags=re.MULTILINE)[0]
        for number, body in zip((2, 3, 4), bodies, strict=True)
    }


def architectures(number: int, body: str) -> list[str]:
    found = re.findall(r"(?<![\d.])(\d) x (\d+)( \+ Skip)?", body)
    return [f"{FAMILY[number]}_{depth}x{width}{'_skip' if skip else ''}" for depth, width, skip in found]


def methods(body: str) -> list[str]:
    # The text spells Table 2's CP in Cyrillic letters.
    return [word.lower() for word in re.findall(r"\b(SGD|Adam|DR|AP|CP)\b", body.replace("\u0421\u0420", "CP"))]


def read_paper(text: str) -> dict[Key, Numbers]:
    """Every row of the three tables, by position: only the names' order is taken from the text's damaged layout."""
    rows: dict[Key, Numbers] = {}
    for number, body in sections(text).items():
        pairs = [(float(mean), float(std)) for mean, std in PAIR.findall(body)]
        models, names = architectures(number, body), methods(body)
        each = len(names) // len(models)
        datasets = list(dict.fromkeys(DATASETS[word] for word in re.findall("|".join(DATASETS), body)))
        assert len(pairs) == 4 * len(names), number
        assert len(models) == 3 * len(datasets), number
        for index, method in enumerate(names):
            block, line = divmod(index, each)
            if number == 2:  # one line of text per row
                values = pairs[4 * index : 4 * index + 4]
            else:  # one line of text per block, column after column
                values = [pairs[4 * each * block + each * column + line] for column in range(4)]
            rows[number, datasets[block // 3], models[block], method] = values
    return rows


@pytest.mark.shared
def test_every_line_is_the_papers(shared: Path) -> None:
    path = shared / "paper" / "pjax-paper.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    published = load_published()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == published.sha256
    for cell in published.cells:
        pairs = [(float(mean), float(std)) for mean, std in PAIR.findall(lines[cell.line - 1])]
        assert {cell.accuracy, cell.steps_k, cell.time_s, cell.ms_per_step} <= set(pairs), cell
    for claim in published.claims:
        # What stands between the parts of a quote, such as figures, is left out.
        first, *others = claim.quote.split(" [...] ")
        assert first in lines[claim.line - 1], claim.id
        rest = " ".join(lines[claim.line - 1 : claim.line + 20])
        for part in (first, *others):
            assert part in rest, claim.id
            rest = rest.partition(part)[2]


@pytest.mark.shared
def test_every_published_number_is_the_papers(shared: Path) -> None:
    text = (shared / "paper" / "pjax-paper.txt").read_text(encoding="utf-8")
    published = load_published()
    ours: dict[Key, Numbers] = {
        (c.table, c.dataset, c.model, c.method): [c.accuracy, c.steps_k, c.time_s, c.ms_per_step]
        for c in published.cells
    }
    paper = read_paper(text)
    assert len(paper) == 87
    assert ours == paper
    assert list(ours) == list(paper)
    assert published.text in text.splitlines()


def test_the_87_cells_divide_as_the_paper_says() -> None:
    published = load_published()
    assert [sum(cell.table == table for cell in published.cells) for table in published.tables] == [45, 30, 12]
    assert len({(c.dataset, c.model, c.method) for c in published.cells}) == 87


def test_published_time_is_steps_times_time_per_step() -> None:
    # Each cell's own numbers check one another: a misread digit would break the product.
    for cell in load_published().cells:
        product = cell.steps_k[0] * cell.ms_per_step[0]
        # 5 %: both factors are rounded, and a mean of products is no product of means.
        assert product == pytest.approx(cell.time_s[0], rel=0.05), cell
