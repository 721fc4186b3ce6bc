"""Functions on `DFPArray` and `DFP32Array` that compute on the integers. Names are NumPy's where it has them.

```python
import dfpjax.numpy as dnp

a, b = dfpjax.quantize(x), dfpjax.quantize(w)
y = dnp.down_convert(a @ b)  # DFP-16 · DFP-16 → DFP-32 → DFP-16
z = dnp.relu(y + dfpjax.quantize(bias))
```

Arithmetic follows §3.1 of Das et al., 2018, with straight-through derivatives (see
`dfpjax.numbers.arithmetic`). Functions of structure move mantissas together with their exponents. Only
`concatenate`, `stack` and `maximum` align values, with one rounding.
"""

from dfpjax.numbers.arithmetic.elementwise import absolute as absolute
from dfpjax.numbers.arithmetic.elementwise import add as add
from dfpjax.numbers.arithmetic.elementwise import down_convert as down_convert
from dfpjax.numbers.arithmetic.elementwise import fma as fma
from dfpjax.numbers.arithmetic.elementwise import multiply as multiply
from dfpjax.numbers.arithmetic.elementwise import negative as negative
from dfpjax.numbers.arithmetic.elementwise import subtract as subtract
from dfpjax.numbers.arithmetic.indexing import take as take
from dfpjax.numbers.arithmetic.matmul import matmul as matmul
from dfpjax.numbers.arithmetic.selection import max_pool as max_pool
from dfpjax.numbers.arithmetic.selection import maximum as maximum
from dfpjax.numbers.arithmetic.selection import relu as relu
from dfpjax.numbers.arithmetic.structure import broadcast_to as broadcast_to
from dfpjax.numbers.arithmetic.structure import concatenate as concatenate
from dfpjax.numbers.arithmetic.structure import expand_dims as expand_dims
from dfpjax.numbers.arithmetic.structure import flip as flip
from dfpjax.numbers.arithmetic.structure import moveaxis as moveaxis
from dfpjax.numbers.arithmetic.structure import pad as pad
from dfpjax.numbers.arithmetic.structure import ravel as ravel
from dfpjax.numbers.arithmetic.structure import reshape as reshape
from dfpjax.numbers.arithmetic.structure import split_exponent as split_exponent
from dfpjax.numbers.arithmetic.structure import squeeze as squeeze
from dfpjax.numbers.arithmetic.structure import stack as stack
from dfpjax.numbers.arithmetic.structure import swapaxes as swapaxes
from dfpjax.numbers.arithmetic.structure import transpose as transpose
