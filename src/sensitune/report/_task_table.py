"""The field's table: a column per task, the mean of each group, and the mean of the groups."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from sensitune._markdown import escape, table
from sensitune._text import csv_cell
from sensitune.errors import ArgumentError
from sensitune.report._latex import escape_latex, latex_score
from sensitune.report._terminal import terminal_text

if TYPE_CHECKING:
    import rich.console
    import rich.table

_MEAN = "mean"
_WIDEST = 9  # columns of accuracies that a page holds unshrunk


@dataclass(frozen=True, slots=True)
class Score:
    """An accuracy.

    Attributes:
        mean: Its mean over seeds, in [0, 1].
        std: Its standard deviation over seeds, with n - 1 below the fraction; None with fewer than 2 seeds.
    """

    mean: float
    std: float | None = None

    @classmethod
    def of(cls, by_seed: Sequence[float]) -> Score:
        """The score of one accuracy per seed."""
        return cls(fmean(by_seed), stdev(by_seed) if len(by_seed) > 1 else None)

    def show(self) -> str:
        """In per cent, to one decimal: ``75.3 ± 0.2``."""
        return f"{100 * self.mean:.1f}" + ("" if self.std is None else f" ± {100 * self.std:.1f}")


@dataclass(frozen=True, slots=True)
class TableRow:
    """One method on every task.

    Attributes:
        label: What a reader calls it.
        values: Task -> test accuracy in [0, 1] of every seed, in the same order for all tasks; a task that is not
            finished is left out.
        trainable_params: Scalars that trained, the head not counted; a mean where it differs between tasks; None if
            unknown.
        note: What a reader must know of the row; of a published one, where it is printed.
        published: Whether it was read in a publication instead of measured: it is shown as it was printed, without ±,
            and no mean of it is computed.
        group_values: Of a published row: group -> printed mean, in [0, 1].
        mean: Of a published row: the printed headline mean, in [0, 1].
    """

    label: str
    values: Mapping[str, Sequence[float]]
    trainable_params: int | None = None
    note: str = ""
    published: bool = False
    group_values: Mapping[str, float] = field(default_factory=dict)
    mean: float | None = None

    def __post_init__(self) -> None:
        printed = [*self.group_values.values(), *([] if self.mean is None else [self.mean])]
        if printed and not self.published:
            raise ArgumentError(f"`group_values` and `mean` of {self.label!r} follow from its values. Leave them out.")
        for value in [*printed, *(value for values in self.values.values() for value in values)]:
            if not 0 <= value <= 1:
                raise ArgumentError(f"An accuracy must be in [0, 1], not in per cent. {self.label!r} has {value}.")
        counts = {len(values) for values in self.values.values()}
        if len(counts) > 1 or 0 in counts or (self.published and counts - {1}):
            raise ArgumentError(
                f"Every task of {self.label!r} must have one accuracy per seed, a published one a single accuracy. "
                f"Got {', '.join(f'{task}: {len(values)}' for task, values in self.values.items())}."
            )

    @property
    def num_seeds(self) -> int | None:
        """Seeds behind every accuracy; None if there is none, or nothing is said of them."""
        return None if self.published else next(map(len, self.values.values()), None)


@dataclass(frozen=True, slots=True)
class TaskTable:
    """Methods × tasks as the field prints it: every task, then the mean of each group, then the mean of the groups.

    With accuracies a[t, s] of task t and seed s, a group's mean is ``mean over s of (mean over its t of a[t, s])``, its
    ± the standard deviation over s of the inner mean; the headline's inner mean is that of the groups' inner means
    (VTAB-1k: Zhai et al., arXiv 1910.04867, section 2). With a single group, its mean is the headline. A mean over
    tasks of which one is missing is not given.

    Attributes:
        groups: Group -> its tasks, in the order of the columns.
        rows: The methods.
        title: What stands above the table.
    """

    groups: Mapping[str, tuple[str, ...]]
    rows: tuple[TableRow, ...]
    title: str = "Test accuracy"

    def __post_init__(self) -> None:
        if not self.rows or not self.tasks:
            raise ArgumentError("A table needs at least one row and one task. Got none.")
        for row in self.rows:
            unknown = [name for name in row.values if name not in self.tasks]
            unknown += [name for name in row.group_values if name not in self.groups]
            if unknown:
                raise ArgumentError(f"{row.label!r} has {unknown[0]!r}, which is no column of the table.")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every task, in the order of the columns."""
        return tuple(task for tasks in self.groups.values() for task in tasks)

    @property
    def caption(self) -> str:
        """What a reader must know to read the numbers right, in sentences."""
        return self._describe(str)

    def _describe(self, named: Callable[[str], str]) -> str:
        """The caption; `named` writes what was named from outside."""
        parts = [f"Test accuracy in per cent{self._describe_seeds()}."]
        if len(self.groups) > 1:
            parts.append("The mean is that of the group means.")
        if self._has_params:
            parts.append("Trainable parameters: the head not counted, a mean over the tasks.")
        for row in self.rows:
            finished = f"{len(row.values)} of {len(self.tasks)} tasks finished"
            unfinished = not row.published and len(row.values) < len(self.tasks)
            if said := "; ".join(filter(None, [named(row.note), finished if unfinished else ""])):
                parts.append(f"{named(row.label)}: {said}.")
        return " ".join(parts)

    @property
    def columns(self) -> list[str]:
        """Names of the columns: the tasks, the groups if there are several, the headline."""
        return [*self.tasks, *self._shown_groups, _MEAN]

    def by_seed(self, row: TableRow) -> list[list[float]]:
        """A row's accuracies of every seed, by column; empty where there is nothing to say.

        Args:
            row: One of `rows`.

        Returns:
            One per seed for each of `columns`; of a published row the one that was printed.
        """
        tasks = [list(row.values.get(task, ())) for task in self.tasks]
        if row.published:
            printed = [*(row.group_values.get(group) for group in self._shown_groups), row.mean]
            return [*tasks, *([] if value is None else [value] for value in printed)]
        means = {group: _mean_by_seed(row.values, tasks) for group, tasks in self.groups.items()}
        headline = _mean_by_seed(means, tuple(means)) if all(means.values()) else []
        return [*tasks, *(means[group] for group in self._shown_groups), headline]

    def scores(self, row: TableRow) -> list[Score | None]:
        """A row's cells; None where there is nothing to say.

        Args:
            row: One of `rows`.

        Returns:
            A score for each of `columns`.
        """
        return [Score.of(values) if values else None for values in self.by_seed(row)]

    def texts(self, row: TableRow) -> list[str]:
        """A row's cells in words.

        Args:
            row: One of `rows`.

        Returns:
            A text for each of `columns`.
        """
        return ["–" if score is None else score.show() for score in self.scores(row)]

    def markdown(self) -> str:
        """The table as a page in Markdown: title, table, caption."""
        numbers = [*(["trainable"] if self._has_params else []), *map(escape, self.columns)]
        body = [[escape(row.label), *self._params(row), *self.texts(row)] for row in self.rows]
        drawn = table(["method", *numbers], body, numeric=numbers)
        return f"# {escape(self.title)}\n\n{drawn}\n\n{self._describe(escape)}\n"

    def csv(self) -> str:
        """The table for a machine: accuracies in [0, 1] to 12 digits, standard deviations in columns of their own.

        Returns:
            ``method, published, note, num_seeds, trainable_params``, then ``NAME, NAME_std`` for every task, for
            ``mean_GROUP`` where there are several groups, and for ``mean``. What is not known is empty.
        """
        names = [*self.tasks, *(f"mean_{group}" for group in self._shown_groups), _MEAN]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        columns = (column for name in names for column in (name, f"{name}_std"))
        writer.writerow(["method", "published", "note", "num_seeds", "trainable_params", *map(csv_cell, columns)])
        for row in self.rows:
            scores = (value for score in self.scores(row) for value in _digits(score))
            named = [row.label, row.published, row.note, row.num_seeds, row.trainable_params]
            writer.writerow([*map(csv_cell, named), *scores])
        return text.getvalue()

    def latex(self) -> str:
        """The table for a paper: a ``table*`` that needs the packages booktabs and graphicx."""
        caption = escape_latex(f"{self.title}. {self.caption}")
        lines = [
            r"% Needs \usepackage{booktabs} and \usepackage{graphicx}.",
            r"\begin{table*}",
            r"\centering",
            r"\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{caption}}}",
            *self._latex_tabular(),
            r"\end{table*}",
        ]
        return "\n".join(lines) + "\n"

    def __rich_console__(self, console: rich.console.Console, options: rich.console.ConsoleOptions) -> Iterator[Any]:
        """The table for a terminal: a line per task, as 24 columns fit on none.

        Where there are more methods than fit, a line per method, without the single tasks if it must be.

        Yields:
            The table in the first form that fits, else in the last.
        """
        from rich.measure import Measurement

        unlimited = options.update_width(10_000)  # a measurement never exceeds its limit
        means = len(self.tasks)
        by_method, means_by_method = (
            [[row.label, *self.texts(row)[first:], *self._params(row)] for row in self.rows] for first in (0, means)
        )
        last = ["trainable"] if self._has_params else []
        headings = ["", *self.columns, *last]
        by_task = [list(line) for line in zip(headings, *by_method, strict=True)]
        ends = {means, len(self.columns)}
        drawn = self._draw(by_task, caption=self.caption, ends=ends)
        if Measurement.get(console, unlimited, drawn).minimum > options.max_width:
            drawn = self._draw([headings, *by_method], caption=self.caption)
        if Measurement.get(console, unlimited, drawn).minimum > options.max_width:
            said = f"{self.caption} Without the single tasks, for which this terminal is too narrow."
            drawn = self._draw([["", *headings[means + 1 :]], *means_by_method], caption=said)
        yield drawn

    def _draw(self, lines: Sequence[Sequence[str]], *, caption: str, ends: Collection[int] = ()) -> rich.table.Table:
        """Lines of cells, the headings first; a rule follows the lines of `ends`. Only names may be broken."""
        from rich import box
        from rich.table import Table as RichTable

        title, below = terminal_text(self.title, "bold"), terminal_text(caption, "table.caption")
        drawn = RichTable(title=title, caption=below, box=box.SIMPLE_HEAD, pad_edge=False)
        drawn.title_justify, drawn.caption_justify = "left", "left"
        for index, (heading, *cells) in enumerate(zip(*lines, strict=True)):
            width = max(map(len, cells), default=0) if index else None
            drawn.add_column(terminal_text(heading), justify="right" if index else "left", min_width=width)
        for index, line in enumerate(lines[1:], start=1):
            drawn.add_row(*map(terminal_text, line), end_section=index in ends)
        return drawn

    @property
    def _shown_groups(self) -> tuple[str, ...]:
        return tuple(self.groups) if len(self.groups) > 1 else ()

    @property
    def _num_means(self) -> int:
        return len(self._shown_groups) + 1

    @property
    def _has_params(self) -> bool:
        return any(row.trainable_params is not None for row in self.rows)

    def _params(self, row: TableRow) -> list[str]:
        if not self._has_params:
            return []
        return ["–" if row.trainable_params is None else f"{row.trainable_params:,}"]

    def _describe_seeds(self) -> str:
        counts = {row.num_seeds for row in self.rows} - {None}
        if not counts:
            return ""
        if counts == {1}:
            return ", one seed"
        return f", mean ± standard deviation over {' or '.join(map(str, sorted(filter(None, counts))))} seeds"

    def _latex_tabular(self) -> list[str]:
        """The table alone, shrunk to the page's width where it has many columns."""
        cells = [
            [escape_latex(row.label), *map(escape_latex, self._params(row)), *map(latex_score, self.texts(row))]
            for row in self.rows
        ]
        tabular = [
            rf"\begin{{tabular}}{{l{'r' * self._has_params}{'c' * len(self.columns)}}}",
            r"\toprule",
            *self._latex_headings(1 + self._has_params),
            r"\midrule",
            *(rf"{' & '.join(line)} \\" for line in cells),
            r"\bottomrule",
            r"\end{tabular}",
        ]
        return tabular if len(self.columns) <= _WIDEST else [r"\resizebox{\textwidth}{!}{%", *tabular, "}"]

    def _latex_headings(self, before: int) -> list[str]:
        """The names of all columns, upright; where there are several groups, their names above."""
        first = ["method", *(["trainable"] if self._has_params else [])]
        names = [rf"\rotatebox{{90}}{{{escape_latex(heading)}}}" for heading in self.columns]
        lines = [rf"{' & '.join([*first, *names])} \\"]
        if not self._shown_groups:
            return lines
        spans, rules, start = [""] * before, [], before + 1
        for group, width in [
            *((group, len(tasks)) for group, tasks in self.groups.items()),
            ("means", self._num_means),
        ]:
            spans.append(rf"\multicolumn{{{width}}}{{c}}{{{escape_latex(group)}}}")
            rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
            start += width
        return [rf"{' & '.join(spans)} \\", " ".join(rules), *lines]


def _mean_by_seed(values: Mapping[str, Sequence[float]], names: Sequence[str]) -> list[float]:
    """The mean over the names for every seed; empty if one of them is missing."""
    if any(name not in values for name in names):
        return []
    return [fmean(each) for each in zip(*(values[name] for name in names), strict=True)]


def _digits(score: Score | None) -> tuple[str, str]:
    if score is None:
        return "", ""
    return f"{score.mean:.12g}", "" if score.std is None else f"{score.std:.12g}"
