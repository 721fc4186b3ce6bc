"""Policy: which operations run in dynamic fixed point, how they run, and how rules identify them."""

from dfpjax.policy import policies as policies
from dfpjax.policy._config import OpConfig as OpConfig
from dfpjax.policy._config import PerRole as PerRole
from dfpjax.policy._policy import Policy as Policy
from dfpjax.policy._rules import Position as Position
from dfpjax.policy._rules import Rule as Rule
