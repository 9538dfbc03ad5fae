"""The tables of a report, as Markdown and as LaTeX; the page sorts them by the numbers behind their cells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from trajectory.reporting.published import PublishedScore
from trajectory.reporting.rows import Group, Row
from trajectory.reporting.runs import Run, SkippedRun
from trajectory.reporting.statistics import Interval

METHOD = (
    "Mean and interquartile mean (IQM: of the middle half) are of all episodes of a row. Brackets: 95 % percentile "
    "bootstrap intervals; the row's trainings (seeds) are resampled, then the episodes of each drawn one. With one "
    "training only its episodes are resampled, marked *: such an interval says nothing about other seeds."
)


@dataclass(frozen=True)
class Cell:
    """What is shown, and the number that it stands for; None for words and for what is unknown."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """Every row has a cell for every column."""

    caption: str
    header: list[str]
    rows: list[list[Cell]]

    def numeric(self, column: int) -> bool:
        """Whether any cell of a column stands for a number."""
        return any(row[column].value is not None for row in self.rows)


UNKNOWN = Cell("–")


def describe_data(group: Group) -> str:
    """What the rows of a group were trained on."""
    data = group.dataset
    if len(group.versions) > 1:
        return f"Data: {data['id']}, versions {', '.join(group.versions)}."
    scored = f", normalised score {group.of_data:.1f}" if group.scored else ""
    return (
        f"Data: {data['id']}, content {data['content_hash']}; {data['behaviour']}; {data['episodes']:,} episodes, "
        f"return {data['return_mean']:.1f} ± {data['return_std']:.1f}{scored}."
    )


def score_table(group: Group) -> Table:
    """The rows of a dataset: scores beside what they cost."""
    mean, iqm = ("score", "IQM score") if group.scored else ("mean return", "IQM return")
    header = ["method", "checkpoint", "seeds × episodes", "return", f"{mean} [95 %]", f"{iqm} [95 %]"]
    header += ["ms per decision", "training, min"]
    return Table(f"{group.dataset['id']} in {group.environment}", header, [_score_row(row) for row in group.rows])


def _score_row(row: Row) -> list[Cell]:
    star = "*" if len(row.values) == 1 else ""
    minutes = None if row.training_s is None else row.training_s / 60
    return [
        Cell(row.label),
        Cell(row.checkpoint),
        Cell(row.episodes, sum(map(len, row.values))),
        Cell(f"{row.returns:.1f}", row.returns),
        Cell(estimate(row.summary.mean, row.summary.mean_interval) + star, row.summary.mean),
        Cell(estimate(row.summary.iqm, row.summary.iqm_interval) + star, row.summary.iqm),
        Cell(f"{row.latency_ms:.3g}", row.latency_ms),
        UNKNOWN if minutes is None else Cell(f"{minutes:.1f}", minutes),
    ]


def estimate(value: float, interval: Interval | None) -> str:
    """A mean with its interval, which a single episode does not have."""
    return f"{value:.1f}" + (f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else " [one episode]")


def published_tables(scores: Sequence[PublishedScore]) -> list[Table]:
    """One for each version of the published data; a cell is empty where nothing was published."""
    tables = []
    for data in dict.fromkeys(score.data for score in scores):
        of_data = [score for score in scores if score.data == data]
        methods = list(dict.fromkeys(score.method for score in of_data))
        scores_of = {(score.environment, score.quality, score.method): score for score in of_data}
        tasks = list(dict.fromkeys((score.environment, score.quality) for score in of_data))
        rows = [
            [Cell(" ".join(task)), *(_published(scores_of.get((*task, method))) for method in methods)]
            for task in tasks
        ]
        caption = f"Published normalised scores on {data}: other data than that of the runs above"
        tables.append(Table(caption, [data, *methods], rows))
    return tables


def _published(score: PublishedScore | None) -> Cell:
    if score is None:
        return UNKNOWN
    return Cell(f"{score.score:.1f}" + (f" ± {score.error:.1f}" if score.error is not None else ""), score.score)


def runs_table(runs: Sequence[Run]) -> Table:
    """Every run that the other tables are made from."""
    header = ["run", "method", "data", "checkpoint", "seed", "episodes", "return", "ms per decision", "machine"]
    return Table(
        "Runs in this report",
        header,
        [
            [
                Cell(str(run.folder)),
                Cell(f"{run.method} (cut short)" if run.partial else run.method),
                Cell(f"{run.dataset['id']} ({run.dataset['content_hash']})"),
                Cell(run.checkpoint),
                UNKNOWN if run.seed is None else Cell(str(run.seed), run.seed),
                Cell(str(len(run.returns)), len(run.returns)),
                Cell(f"{(mean := sum(run.returns.values()) / len(run.returns)):.1f}", mean),
                Cell(f"{run.latency_ms:.3g}", run.latency_ms),
                Cell(run.machine),
            ]
            for run in runs
        ],
    )


def skipped_table(problems: Sequence[SkippedRun]) -> Table:
    """Every run that is in no other table."""
    rows = [[Cell(str(problem.folder)), Cell(problem.reason)] for problem in problems]
    return Table("Runs that are left out", ["run", "why"], rows)


def to_text(table: Table) -> str:
    """Aligned columns, for a terminal."""
    lines = [table.header, *([cell.text for cell in row] for row in table.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.header))]
    return "\n".join([table.caption, *("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)])


def to_markdown(table: Table) -> str:
    """A table of GitHub's Markdown below its caption; names cannot break it."""
    rule = ["---:" if table.numeric(column) else "---" for column in range(len(table.header))]
    lines = [[escape_markdown(name) for name in table.header], rule]
    lines += [[escape_markdown(cell.text) for cell in row] for row in table.rows]
    return f"**{escape_markdown(table.caption)}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def to_latex(table: Table) -> str:
    """A `table` with the rules of the package booktabs; names cannot break it."""
    columns = "".join("r" if table.numeric(column) else "l" for column in range(len(table.header)))
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{escape_latex(table.caption)}}}"]
    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _latex_row(table.header), r"\midrule"]
    lines += [_latex_row([cell.text for cell in row]) for row in table.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    # in braces a bracket is never taken for the optional argument of the line break before it
    return " & ".join(f"{{{escape_latex(cell)}}}" for cell in cells) + r" \\"


def escape_markdown(text: str) -> str:
    """Text that Markdown, and HTML within it, shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|#~&$])", r"\\\1", " ".join(text.split()))


LATEX = {sign: f"\\{sign}" for sign in "&%$#_{}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {"±": r"$\pm$", "×": r"$\times$", "–": "--"}


def escape_latex(text: str) -> str:
    """Text that LaTeX shows as it is."""
    return "".join(LATEX.get(sign, sign) for sign in " ".join(text.split()))
