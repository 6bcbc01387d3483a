"""One method per file."""

from quincunx.inference.methods.nuts import NUTS as NUTS
