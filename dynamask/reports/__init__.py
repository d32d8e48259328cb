"""Reports on weights and data: what a command measured, as Markdown, CSV, JSON and an interactive page."""
