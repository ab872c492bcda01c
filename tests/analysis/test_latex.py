"""The tables' LaTeX, by a real TeX where there is one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from analysis import latex, tables

needs_tex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")


@needs_tex
def test_tables_compile(runs: Path, write_run: Any, tmp_path: Path) -> None:
    for seed in range(2):
        write_run(seed=seed, data__subset=True, metrics__stopped_by="max_steps")  # with every mark
    assert tables.main([str(runs), "--table", "2", "--out", str(tmp_path)]) == 0
    assert latex.main([str(tmp_path)]) == 0


@needs_tex
def test_what_tex_refuses_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "table2.tex"
    path.write_text(r"\undefined")
    assert latex.main([str(tmp_path)]) == 1
    assert f"error: {path}: pdflatex says" in capsys.readouterr().err


def test_without_tex_or_tables_the_command_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert latex.main([str(tmp_path)]) == 1
    assert "`make tables` writes them" in capsys.readouterr().err
    (tmp_path / "table2.tex").touch()
    monkeypatch.setenv("PATH", "")
    assert latex.main([str(tmp_path)]) == 1
    assert "apt-get install texlive-latex-recommended" in capsys.readouterr().err


def test_special_characters_and_signs_are_latexs() -> None:
    assert latex.escape("a_b & 5 % ± — †") == r"a\_b \& 5 \% $\pm$ --- \dag{}"
    assert latex.escape("-0.1 [+1.0] CIFAR-10") == "$-$0.1 [$+$1.0] CIFAR-10"


def test_every_row_of_a_table_has_every_column(runs: Path, write_run: Any, tmp_path: Path) -> None:
    write_run()
    assert tables.main([str(runs), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "table2.tex").read_text(encoding="utf-8")
    assert text.startswith("% made by: python -m analysis.tables ")
    assert text.count(r"\begin{tabular}") == text.count(r"\toprule") == text.count(r"\bottomrule") == 4
    for part in text.split(r"\begin{tabular}")[1:]:
        rows = [line for line in part.split(r"\end{tabular}")[0].splitlines() if line.endswith(r"\\")]
        assert len(rows) == 46
        assert len({line.replace(r"\&", "").count("&") for line in rows}) == 1
