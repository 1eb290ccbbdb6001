"""What a run or a comparison of runs looks like: a table for the terminal and one HTML file for everybody else."""

from remix_dist.report.page import write_report
from remix_dist.report.summary import summary_table

__all__ = ["summary_table", "write_report"]
