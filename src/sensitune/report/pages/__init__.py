"""One HTML file each that any browser opens without a network: a run, a comparison, a sweep.

    Page ──write_page──▶ report.html          where the parameters of a run went, and would at other budgets
    ComparisonPage ──write_comparison_page──▶ allocations side by side, and what differs
    SweepPage ──write_sweep_page──▶           the field's table, methods with intervals, accuracy against parameters

Charts are Vega-Lite by Altair, its JavaScript is inlined; what a chart shows stands in a table too. An accuracy has
Wilson's interval (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n) of its n images, a mean over seeds Student's.
"""

from sensitune.report.pages._answers import ImageAnswers, Mistake
from sensitune.report.pages._comparison_page import Compared, ComparisonPage, write_comparison_page
from sensitune.report.pages._run_page import Page, write_page
from sensitune.report.pages._sweep_page import SweepPage, write_sweep_page

__all__ = [
    "Compared",
    "ComparisonPage",
    "ImageAnswers",
    "Mistake",
    "Page",
    "SweepPage",
    "write_comparison_page",
    "write_page",
    "write_sweep_page",
]
