"""The handwritten digits that come with scikit-learn: 1,797 real ones, 8×8 pixels with 17 grey levels.

Source: UCI Machine Learning Repository, Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998), its
test set.
"""

from typing import Literal

import torch

from ganzoo.data.base import Tensors


def digits():
    """Images (1797, 1, 8, 8), float32 in [−1, 1], background −1, and their labels (1797,), int64 in 0 ... 9."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    images = torch.from_numpy(bundle.images).to(torch.float32).unsqueeze(1)
    return images / 8 - 1, torch.from_numpy(bundle.target).to(torch.int64)


def open_digits(*, split: Literal["all", "train", "test"] = "all"):
    """scikit-learn's handwritten digits, 8×8.

    `train` is a random 70 % of each class, `test` the rest: always the same ones.
    """
    images, labels = digits()
    if split != "all":
        from sklearn.model_selection import train_test_split

        parts = train_test_split(torch.arange(len(labels)), test_size=0.3, random_state=0, stratify=labels)
        chosen = parts[split == "test"]
        images, labels = images[chosen], labels[chosen]
    return Tensors("digits", {"image": images, "label": labels}, classes=10, split=split)
