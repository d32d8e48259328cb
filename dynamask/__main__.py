"""``python -m dynamask``: the command line."""

from dynamask.cli import main

raise SystemExit(main())
