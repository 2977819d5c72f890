"""A run as one HTML page that needs no network: cards, charts by round, settings."""

from fedhlm_app.results.report.page import render, write_report

__all__ = ["render", "write_report"]
