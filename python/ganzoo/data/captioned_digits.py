"""scikit-learn's digits with captions: a small set on which images can be learned from text."""

from typing import Literal

import torch

from ganzoo.data.base import Tensors, numbered
from ganzoo.data.digits import open_digits
from ganzoo.options import CountOrZero

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a {}",
    "the digit {}",
    "a handwritten {}",
    "somebody wrote the number {}",
    "this is {} as written by hand",
)
WORDS = 7
VOCABULARY = ("", *sorted({word for text in TEMPLATES for name in NAMES for word in text.format(name).split()}))


def open_captioned_digits(*, split: Literal["all", "train", "test"] = "all", seed: CountOrZero = 0):
    """The digits of `digits`, each with one of five made sentences that name it, chosen with a seed: field `caption`, the numbers of up
    to seven words in `vocabulary`, then zeros."""
    digits = open_digits(split=split)
    fields = digits.fetch(torch.arange(len(digits)))
    templates = torch.randint(len(TEMPLATES), (len(digits),), generator=torch.Generator().manual_seed(seed))
    captions = [TEMPLATES[t].format(NAMES[label]) for t, label in zip(templates.tolist(), fields["label"].tolist())]
    data = Tensors("captioned-digits", {**fields, "caption": numbered(captions, VOCABULARY, WORDS)}, 10, split)
    data.vocabulary = VOCABULARY
    return data
