"""Checks of what a circuit does and does not show; `verify` runs them all."""

from sparse_circuits.faithfulness.report import Report
from sparse_circuits.faithfulness.verification import verify

__all__ = ["Report", "verify"]
