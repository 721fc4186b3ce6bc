import sys
from pathlib import Path

# At the end, so that the installed dfpjax is tested where there is one.
sys.path.append(str(Path(__file__).parents[2]))
