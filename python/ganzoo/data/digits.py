"""The handwritten digits that come with scikit-learn: 1,797 real ones, 8×8 pixels with 17 grey levels.

Source: UCI Machine Learning Repository, Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998), its
test set.
"""

import torch


def digits():
    """Images (1797, 1, 8, 8), float32 in [−1, 1], background −1, and their labels (1797,), int64 in 0 ... 9."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    images = torch.from_numpy(bundle.images).to(torch.float32).unsqueeze(1)
    return images / 8 - 1, torch.from_numpy(bundle.target).to(torch.int64)
