"""The report of a comparison: sentences, tables, CSV and one offline HTML file, all from the same results.

Everything here works on the plain dictionary that ``headway compare`` saves, and imports neither torch nor numpy.
"""

from headway.report.findings import Finding, findings
from headway.report.page import payload, write_report
from headway.report.sheets import to_csv
from headway.report.terminal import table

__all__ = ["Finding", "findings", "payload", "table", "to_csv", "write_report"]
