"""Insight: what becomes of every operation of a program, and why."""

from dfpjax.insight._report import OpRecord as OpRecord
from dfpjax.insight._report import Report as Report
from dfpjax.insight.explain import explain as explain
