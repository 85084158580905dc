"""Letters and numerals rendered from the DejaVu fonts that come with matplotlib, black on white.

Each character appears in four styles, upright, oblique, bold and bold oblique, with serifs and without: `form="paired"`
gives the same character and style in both, for translation from one to the other.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ganzoo.data.base import Tensors
from ganzoo.options import Count

FONTS = {
    "a": ("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSans-Bold", "DejaVuSans-BoldOblique"),
    "b": ("DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic"),
}
CHARACTERS = "".join(
    [
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz&@%?!",
        "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõöøùúûüýþÿ",
        "ΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩαβγδεζηθικλμνξοπρστυφχψω",
        "АБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯабвгдежзийклмнопрстуфхцчшщъыьэюя",
    ]
)


def open_glyphs(*, size: Count = 32, form: Literal["images", "paired", "unpaired"] = "images"):
    """Characters of matplotlib's fonts, size × size pixels; labels are their numbers in `CHARACTERS`.

    `images` has the sans-serif and the serif ones together, `paired` the fields `a` (sans-serif) and `b` (serif),
    `unpaired` the two as domains, each in an order of its own.
    """
    images = {domain: torch.cat([_render(font, size) for font in fonts]) for domain, fonts in FONTS.items()}
    labels = torch.arange(len(CHARACTERS)).repeat(len(FONTS["a"]))
    if form == "paired":
        return Tensors("glyphs", {**images, "label": labels}, classes=len(CHARACTERS))
    if form == "images":
        both = {"image": torch.cat([images["a"], images["b"]]), "label": labels.repeat(2)}
        return Tensors("glyphs", both, classes=len(CHARACTERS))
    random, domains = torch.Generator().manual_seed(0), {}
    for domain, rendered in images.items():
        order = torch.randperm(len(labels), generator=random)
        fields = {"image": rendered[order], "label": labels[order]}
        domains[domain] = Tensors("glyphs", fields, classes=len(CHARACTERS))
    return domains


def _render(font, size):
    """Every character, centred: uint8 (characters, 1, size, size)."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    face = ImageFont.truetype(path, round(0.72 * size), layout_engine=ImageFont.Layout.BASIC)
    glyphs = np.empty((len(CHARACTERS), 1, size, size), np.uint8)
    for glyph, character in zip(glyphs, CHARACTERS):
        image = Image.new("L", (size, size), 255)
        ImageDraw.Draw(image).text((size / 2, 0.74 * size), character, fill=0, font=face, anchor="ms")
        glyph[0] = image
    return torch.from_numpy(glyphs)
