"""scikit-learn's handwritten digits: 1,797 images of 8 x 8, ten classes, inside the package.

Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, https://doi.org/10.24432/C50P49 (its test part).  Pixels are counts from 0 to 16; here
they are ``round(count * 255 / 16)``: 0 is 0, 8 is 128, 16 is 255, and every count stays apart.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from deploy.errors import MissingDependency
from toolchain.data.samples import Source, Split


def read_digits() -> Source:
    """All samples as one part, from which validation and test are cut.

    Raises:
        MissingDependency: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependency(
            "data.kind: digits needs scikit-learn, which is not installed; "
            "install the extra: pip install 'compress-deploy[demo]'"
        ) from error
    bunch = load_digits()
    pixels_NHWC = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels_N = bunch.target.astype(np.int64)
    split = Split.in_memory(torch.from_numpy(pixels_NHWC), torch.from_numpy(labels_N))
    mark = hashlib.sha256(pixels_NHWC.tobytes() + labels_N.tobytes()).hexdigest()
    return Source({"train": split}, tuple("0123456789"), (1, 8, 8), (), mark)
