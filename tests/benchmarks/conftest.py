import sys
from pathlib import Path

# At the end, so an installed dfpjax is tested if there is one.
sys.path.append(str(Path(__file__).parents[2]))
