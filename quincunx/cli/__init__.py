"""The command line: `quincunx demo`, `infer`, `explain`, `methods` and `models`."""

from quincunx.cli.app import main as main
