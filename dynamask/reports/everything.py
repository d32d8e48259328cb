"""``report all`` and ``report sodar-all``: every report that fits the data, and a summary in one Markdown file."""

from __future__ import annotations

from collections.abc import Sequence

from dynamask.reports.writer import Block, Heading, Paragraph, Picture, Report, Table, blocks_markdown

_SKIPPED = ("Checkpoints", "Checkpoint")
"""Sections of a report that the summary has once, at its head."""


def without(blocks: Sequence[Block], headings: Sequence[str]) -> list[Block]:
    """Blocks without the sections of these headings."""
    kept: list[Block] = []
    leaving = False
    for block in blocks:
        if isinstance(block, Heading):
            leaving = block.text in headings
        if not leaving:
            kept.append(block)
    return kept


def summary(
    facts: Sequence[tuple[str, str]], how: str, reports: Sequence[Report], missing: dict[str, str], checkpoints: Table
) -> str:
    """The reports' tables as one Markdown document.

    Args:
        facts: (name, value) of what was measured with what.
        how: the paragraph on how, which every report has and the summary has once.
        reports: in the order to show.
        missing: by name, why a report was not made.
        checkpoints: of all weights.
    """
    head = "\n".join(f"- {name}: {f'`{value}`' if name == 'command' else value}" for name, value in facts)
    names = ", ".join(f"[{report.name}](#{_anchor(report.title)})" for report in reports)
    parts = [
        "# Results",
        "The paper's tables and figures, made again on the data and with the weights named here. The paper's own "
        "figures stand in columns and tables of their own, and are of COCO, Cityscapes or LVIS: figures of other data "
        "say nothing about those. The command below writes pages with pictures, CSV and JSON beside this summary.",
        head,
        blocks_markdown([checkpoints]),
        how,
        f"Here: {names}.",
    ]
    for report in reports:
        parts.append(f"## {report.title}")
        shown = [b for b in without(report.blocks, _SKIPPED) if not isinstance(b, Picture) and b != Paragraph(how)]
        parts.append(blocks_markdown(shown, level=3))
    parts += [f"{name} was not made: {reason}." for name, reason in missing.items()]
    return "\n\n".join(part for part in parts if part) + "\n"


def _anchor(title: str) -> str:
    """The anchor that Markdown readers give a heading."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c == "-")
