"""Insight: what becomes of every operation of a program, and why, and how well it suits the numbers."""

from dfpjax.insight._figures import plot_mantissas as plot_mantissas
from dfpjax.insight._history import History as History
from dfpjax.insight._report import FusedRecord as FusedRecord
from dfpjax.insight._report import OpRecord as OpRecord
from dfpjax.insight._report import Report as Report
from dfpjax.insight._sensitivity_report import LayerSensitivity as LayerSensitivity
from dfpjax.insight._sensitivity_report import SensitivityReport as SensitivityReport
from dfpjax.insight._statistics import LayerStatistics as LayerStatistics
from dfpjax.insight._statistics import OperandStatistics as OperandStatistics
from dfpjax.insight._statistics import PerPass as PerPass
from dfpjax.insight._statistics import Statistics as Statistics
from dfpjax.insight.explain import explain as explain
from dfpjax.insight.sensitivity import sensitivity as sensitivity
from dfpjax.insight.with_statistics import with_statistics as with_statistics
