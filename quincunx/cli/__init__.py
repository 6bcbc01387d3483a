"""The command line: `quincunx demo`, `infer`, `compare`, `report`, `explain` and others."""

from quincunx.cli.app import main as main
