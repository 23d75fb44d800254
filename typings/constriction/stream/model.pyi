import numpy as np
from numpy.typing import NDArray

class Categorical:
    def __init__(self, probabilities: NDArray[np.float64], *, perfect: bool) -> None: ...
