"""The lab's study beside the paper (arXiv 2605.28774): what `docs/study/` has besides the tables
and figures of any study.

    axpo study study page=studies.axpo_paper:PaperPage --out runs/study

- `paper`: the paper's numbers, and which of its rows a variant is;
- `credit`: what training credited first tool calls with, and what resampling recovered;
- `diagnostics`, `figures`: the page's further tables and figures;
- `page`: what `axpo study` calls.
"""

from studies.axpo_paper.page import PaperPage

__all__ = ["PaperPage"]
