"""Checks of what a circuit does and does not show; `verify` runs them all."""

from sparse_circuits.faithfulness.report import Report, verify

__all__ = ["Report", "verify"]
