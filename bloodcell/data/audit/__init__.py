"""The audit of a labelled set: copies of one picture, contaminants, images that cannot be what they are said to be.

`examine` does it and returns an `Audit`; `by_audit` and `by_file` leave out what it removed.
"""

from bloodcell.data.audit.cleaning import by_audit, by_file, positions
from bloodcell.data.audit.examine import examine, needs_features, removing
from bloodcell.data.audit.result import Audit, Finding, Pair, RuleSummary
from bloodcell.data.audit.rules import DEFAULT as DEFAULT_RULES
from bloodcell.data.audit.rules import RULES, parse

__all__ = ["DEFAULT_RULES", "RULES", "Audit", "Finding", "Pair", "RuleSummary", "by_audit", "by_file", "examine",
           "needs_features", "parse", "positions", "removing"]
