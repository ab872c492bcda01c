"""The W&B dashboard of the paper's tables as code: a workspace with all runs, and a report with a section per row.

    python -m analysis.wandb_dashboard --entity TEAM [--project pjax] [--runs results/runs] [--dry-run]

Both come from the paper's list of cells, as the tables and figures do, and read the runs that `analysis.wandb_sync`
sends. --dry-run prints what would be sent, as JSON, and asks nobody.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.compare import Comparison, compare
from analysis.layouts import brief_layout
from analysis.load import load_records
from analysis.published import load_published
from analysis.style import dataset_label, model_label
from analysis.tables import headline, markdown
from analysis.terminal import existing_folder
from analysis.wandb_client import leave

TITLE = "Tables 2-4: training by projections"
_SERIES = "cell_series"
# Of a run's summary, as analysis.wandb_sync writes it, and in words.
_COLUMNS = {
    "accuracy": "Test accuracy (%)",
    "steps_k": "Steps to 99 % of the best (k)",
    "time_s": "Time to 99 % of the best (s)",
    "ms_per_step": "Time per step (ms), the paper's definition",
}


def workspace(entity: str, project: str) -> Any:
    """All runs, a group for each cell: curves against steps and time, and the tables' columns as bars."""
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=TITLE,
        sections=[
            ws.Section(name="Curves, mean and deviation over seeds", panels=_curves(groupby=None), is_open=True),
            ws.Section(name="The tables' columns", panels=_bars(tuple(_COLUMNS)), is_open=True),
        ],
        settings=ws.WorkspaceSettings(x_axis="step"),
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Config(f"cell_{group}") for group in ("dataset", "model", "series")]
        ),
    )


def report(entity: str, project: str, comparisons: Sequence[Comparison]) -> Any:
    """A section for each row of each table, with curves by method and times; then its verdicts, from the records."""
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [wr.TableOfContents()]
    for comparison in comparisons:
        blocks.append(wr.H1(f"Table {comparison.table}"))
        places = dict.fromkeys((row.published.dataset, row.published.model) for row in comparison.rows)
        for dataset, model in places:
            name = f"{dataset_label(dataset)}, {model_label(model)}"
            # Without a project it is the report's own, and nobody has to be asked for its number.
            runs = wr.Runset(  # pyright: ignore[reportPrivateImportUsage]
                name=name,
                filters=f"Config('cell_dataset') = '{dataset}' and Config('cell_model') = '{model}'",
                groupby=[f"config.{_SERIES}"],
            )
            panels = [*_curves(groupby=_SERIES), *_bars(("ms_per_step",))]
            blocks += [wr.H2(name), wr.PanelGrid(runsets=[runs], panels=panels)]
        blocks += [
            wr.H2(f"Verdicts of table {comparison.table}"),
            wr.P(headline(comparison)),
            wr.MarkdownBlock(markdown(brief_layout(comparison))),
        ]
    return wr.Report(  # pyright: ignore[reportPrivateImportUsage]
        entity=entity,
        project=project,
        title=TITLE,
        description="Made by python -m analysis.wandb_dashboard",
        blocks=blocks,
        width="fluid",
    )


def _curves(groupby: str | None) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    grouped: dict[str, Any] = {"groupby": wr.Config(groupby)} if groupby else {}
    return [
        wr.LinePlot(
            title=f"Validation accuracy against {title.lower()}",
            x=wr.Metric(axis),
            y=[wr.Metric("validation_accuracy")],
            title_x=title,
            title_y="Validation accuracy",
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            **grouped,
        )
        for axis, title in (("step", "Steps"), ("train_s", "Seconds of training on the device"))
    ]


def _bars(columns: Sequence[str]) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    return [
        wr.BarPlot(title=_COLUMNS[column], metrics=[wr.SummaryMetric(column)], groupby=wr.Config(_SERIES))
        for column in columns
    ]


def _payload(view: Any) -> dict[str, Any]:
    """What saving a workspace or a report sends; W&B's package has no public name for it."""
    return json.loads(view._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entity", required=True, help="a user or a team")
    parser.add_argument("--project", default="pjax")
    parser.add_argument("--runs", type=existing_folder, default=Path("results/runs"), help="folder for the verdicts")
    parser.add_argument("--dry-run", action="store_true", help="print what would be sent")
    options = parser.parse_args(argv)
    published = load_published()
    try:
        records = load_records(options.runs)
        comparisons = [compare(records, published, table) for table in published.tables]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    found = workspace(options.entity, options.project), report(options.entity, options.project, comparisons)
    if options.dry_run:
        print(json.dumps(dict(zip(("workspace", "report"), map(_payload, found), strict=True)), indent=1))
        return 0
    try:
        for view in found:
            view.save()
            print(view.url)
    except Exception as error:
        # W&B's package has errors of many kinds, some of them bare.
        print(f"error: W&B did not take the dashboard: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    leave(main())
