"""The results of a comparison, as sentences and as tables.

Everything here uses the plain dictionary that ``headway compare`` saves, and imports neither torch nor numpy.
"""

from headway.results.findings import Finding, findings
from headway.results.tables import to_csv

__all__ = ["Finding", "findings", "to_csv"]
