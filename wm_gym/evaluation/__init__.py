"""Measuring: intervals, paired results as the published files hold them, and videos."""
