"""LaTeX of the tables (booktabs), and a check that a real TeX compiles it.

``python -m analysis.latex [results/tables]`` compiles every ``.tex`` file of the folder, each by itself.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from analysis.layouts import Layout
from analysis.terminal import existing_folder

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\u00a0": "~",
    "±": r"$\pm$",
    "—": "---",
    "†": r"\dag{}",
    "§": r"\S{}",
    "‡": r"\ddag{}",
}
PACKAGES = ("booktabs", "graphicx")
_DOCUMENT = r"""\documentclass{article}
%s
\begin{document}
\input{%s}
\end{document}
"""


class TexError(RuntimeError):
    """TeX is missing or refused a file; the message names the file and TeX's own words."""


def escape(text: str) -> str:
    """Returns text as LaTeX shows it; signs of numbers are mathematical."""
    escaped = "".join(_SPECIAL.get(letter, letter) for letter in text)
    return re.sub(r"(?<!\w)([-+])(?=\d)", r"$\1$", escaped)


def latex(layout: Layout, label: str) -> str:
    """Returns a floating table, as wide as the text; it needs the packages ``PACKAGES``."""
    kinds = "".join("l" if column.kind in ("text", "verdict") else "r" for column in layout.columns)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{The paper's {escape(layout.caption)}.}}",
        rf"\label{{{label}}}",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{{kinds}}}",
        r"\toprule",
        " & ".join(escape(column.header) for column in layout.columns) + r" \\",
    ]
    for cells in layout.places():
        # A rule above each data set, some space above each architecture.
        if cells[0]:
            lines.append(r"\midrule")
        elif cells[1]:
            lines.append(r"\addlinespace")
        lines.append(" & ".join(escape(cell) for cell in cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", r"\end{table}", ""])


def compile_tex(path: Path, program: str = "pdflatex") -> None:
    """Compiles a file of tables in a document of its own, in a scratch folder that is gone afterwards.

    Raises TexError when there is no such program, when it refuses the file, or warns of a line that is too wide.
    """
    found = shutil.which(program)
    if found is None:
        raise TexError(f"no {program} on the PATH; on Debian: apt-get install texlive-latex-recommended")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copy(path, folder / "tables.tex")
        packages = "\n".join(rf"\usepackage{{{name}}}" for name in PACKAGES)
        (folder / "main.tex").write_text(_DOCUMENT % (packages, "tables.tex"), encoding="utf-8")
        command = [found, "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode or not (folder / "main.pdf").is_file():
            raise TexError(f"{path}: {program} says\n{done.stdout[-1500:]}")
        if "Overfull \\hbox" in done.stdout:
            raise TexError(f"{path}: a table is wider than the text\n{done.stdout[-1500:]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (1 for a file that does not compile, or without TeX)."""
    parser = argparse.ArgumentParser(prog="python -m analysis.latex", description="Compile the tables' LaTeX.")
    parser.add_argument("folder", nargs="?", type=existing_folder, default=Path("results/tables"))
    folder: Path = parser.parse_args(argv).folder
    paths = sorted(folder.glob("*.tex"))
    if not paths:
        print(f"error: no .tex files in {folder}; `make tables` writes them", file=sys.stderr)
        return 1
    for path in paths:
        try:
            compile_tex(path)
        except TexError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        print(f"{path}: compiles")
    return 0


if __name__ == "__main__":
    sys.exit(main())
