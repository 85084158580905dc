"""A figure together with all that decides what it can be compared with."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One number that was measured on generated samples.

    Args:
        name: of the metric, with its parameters, such as `KID (100 subsets of 1000)`.
        value: the number.
        extractor: the features or the judge it was computed with.
        split: the reference set, its part, and how many samples of it.
        resize: what was done to images before the features.
        n: how many generated samples.
    """

    name: str
    value: float
    extractor: str
    split: str
    resize: str
    n: int

    def __str__(self):
        return (
            f"{self.name} {self.value:.4g} "
            f"(extractor {self.extractor}; reference {self.split}; resize {self.resize}; {self.n} samples)"
        )
