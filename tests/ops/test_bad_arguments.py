"""Every argument of every public function, given what it is not: one sentence that names function and argument."""

import functools
import inspect
import re

import pytest
import torch
from torch import nn

import gankernels as gk


def parts(x):
    return x.flatten(1).sum(1)


def images(w):
    return w.reshape(len(w), 1, 1, -1)


X, IMAGES, FILTER = torch.randn(4, 6), torch.randn(2, 4, 8, 8), torch.ones(2)
CRITIC = {"critic": nn.Linear(6, 1)}
NORM = {"x": X, "weight": torch.ones(6), "bias": torch.ones(6)}
WEIGHT = torch.randn(4, 4, 3, 3)
# a call that works, in which every argument that may be absent and is a tensor is there
CALLS = {
    "bias_act": {"x": X, "b": torch.ones(6)},
    "clip_weights_": {"module_or_tensors": [torch.ones(3)], "c": 1.0},
    "conv2d_resample": {"x": IMAGES, "w": WEIGHT, "f": FILTER, "up": 2},
    "downsample2d": {"x": IMAGES, "f": FILTER},
    "dragan_penalty": CRITIC | {"real": X},
    "explain": CRITIC | {"x": X},
    "filter2d": {"x": IMAGES, "f": FILTER},
    "filtered_lrelu": {"x": IMAGES, "fu": FILTER, "fd": FILTER, "b": torch.ones(4)},
    "fma": {"a": X, "b": X, "c": X},
    "gelu": {"x": X},
    "grad_norm_penalty": {"grads": X},
    "gradient_penalty": CRITIC | {"real": X, "fake": X},
    "grid_sample": {"x": IMAGES, "grid": torch.zeros(2, 3, 3, 2)},
    "group_norm": {"x": IMAGES, "num_groups": 2, "weight": torch.ones(4), "bias": torch.ones(4)},
    "interpolate": {"real": X, "fake": X},
    "layer_norm": NORM | {"normalized_shape": 6},
    "minibatch_discrimination": {"x": X, "T": torch.randn(6, 3, 2)},
    "minibatch_stddev": {"x": IMAGES},
    "modulated_conv2d": {
        "x": IMAGES, "weight": WEIGHT, "styles": torch.ones(2, 4), "noise": torch.ones(6, 6), "bias": torch.ones(4),
        "resample_filter": FILTER, "input_gain": 1.0,
    },
    "path_length_penalty": {"synthesis": images, "w": X, "mean_length": torch.zeros(()), "noise": torch.ones(4, 1, 1, 6)},
    "pixel_norm": {"x": X},
    "r1_penalty": CRITIC | {"real": X},
    "r2_penalty": CRITIC | {"fake": X},
    "regularized_scores": CRITIC | {"x": X},
    "rms_norm": {"x": X, "normalized_shape": 6, "weight": torch.ones(6)},
    "scaled_dot_product_attention": {"q": IMAGES, "k": IMAGES, "v": IMAGES},
    "setup_filter": {"f": FILTER},
    "upfirdn2d": {"x": IMAGES, "f": FILTER},
    "upsample2d": {"x": IMAGES, "f": FILTER},
    "nn.Blur": {"kernel": FILTER, "pad": (1, 0)},
    "nn.Downsample": {},
    "nn.FusedLeakyReLU": {"channels": 4},
    "nn.MinibatchDiscrimination": {"in_features": 6, "out_features": 3},
    "nn.MinibatchStdDev": {},
    "nn.ModulatedConv2d": {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "style_dim": 6},
    "nn.PixelNorm": {},
    "nn.Upsample": {},
    "nn.remove_spectral_norm": {"module": nn.Linear(2, 2)},
    "nn.spectral_norm": {"module": nn.Linear(2, 2)},
    "optim.Adam": {"params": [nn.Parameter(torch.ones(2))]},
    "optim.RMSprop": {"params": [nn.Parameter(torch.ones(2))]},
}  # fmt: skip
WITHOUT_ARGUMENTS = {"fast_double_backward", "no_weight_gradients"}

NOTHING, TEXT, LIST, INTEGERS, FLAG, TENSOR = (
    None,
    "a",
    [1.5],
    torch.ones(4, 6, dtype=torch.int64),
    True,
    torch.ones(2, 3, 5),
)
ANYTHING = (NOTHING, TEXT, LIST, INTEGERS, FLAG)
# what an annotation does not admit
REFUSED = {
    "torch.Tensor": ANYTHING,
    "float": (*ANYTHING, TENSOR),
    "int": (*ANYTHING, 1.5, TENSOR),
    "bool": (NOTHING, TEXT, LIST, INTEGERS, 1.5),
    "str": (NOTHING, LIST, INTEGERS, FLAG, 1.5),
    "Callable": ANYTHING,
    "Sequence": (NOTHING, TEXT, INTEGERS, FLAG, 1.5),
    "dict": (TEXT, LIST, INTEGERS, FLAG),
    "None": (TEXT, LIST, INTEGERS, FLAG),
    "torch.Generator": ANYTHING,
    "torch.device": (LIST, INTEGERS, FLAG),
    "Sequence[int]": (NOTHING, TEXT, LIST, INTEGERS, FLAG, 1.5, ["a"], {"a": 1}),
    "tuple[int, int]": (NOTHING, TEXT, LIST, INTEGERS, FLAG, 1.5, ["a", "b"]),
    "tuple[float, float]": (NOTHING, TEXT, LIST, INTEGERS, FLAG, 1.5, ["a", "b"]),
    "nn.Module": ANYTHING,
    "torch.nn.Module": ANYTHING,
    "Iterable[torch.Tensor]": (NOTHING, TEXT, LIST, INTEGERS, FLAG, 1.5),
    "ParamsT": (NOTHING, TEXT, LIST, FLAG, 1.5),
}
ADMITS = {
    "None": (NOTHING,),
    "str": (TEXT,),
    "bool": (FLAG,),
    "Sequence": (LIST,),
    "float": (1.5,),
    "torch.Tensor": (TENSOR,),
}


def function_of(name):
    return functools.reduce(getattr, name.split("."), gk)


def refused(annotation, of_taps):
    kinds = annotation.split(" | ")
    admitted = [value for kind in kinds for value in ADMITS.get(kind, ())]
    admitted += [INTEGERS] if of_taps else []  # taps may be integers
    values = [value for kind in kinds for value in REFUSED[kind] if kind != "None"] or list(REFUSED["None"])
    unique = {id(value): value for value in values if not any(value is other for other in admitted)}
    return list(unique.values())


ARGUMENTS = [
    pytest.param(name, argument, id=f"{name}-{argument.name}")
    for name in CALLS
    for argument in inspect.signature(function_of(name)).parameters.values()
]


def test_every_public_function_is_here():
    functions = {name for name in gk.__all__ if name not in ("nn", "optim", "reference", "activation_funcs")}
    functions |= {f"nn.{name}" for name in gk.nn.__all__ if name != "SpectralNorm"}  # which spectral_norm makes
    functions |= {f"optim.{name}" for name in gk.optim.__all__}
    assert functions - WITHOUT_ARGUMENTS == set(CALLS)


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_an_argument_of_a_wrong_kind_is_one_sentence(name, argument):
    function, op = function_of(name), name.removeprefix("nn.") if "spectral_norm" in name else name
    of_taps = name == "setup_filter" or argument.name in ("kernel", "blur_kernel")
    values = refused(argument.annotation, of_taps)
    assert values
    for value in values:
        with pytest.raises((TypeError, ValueError, NotImplementedError)) as error:
            function(**CALLS[name] | {argument.name: value})
            pytest.fail(f"{name} took {argument.name}={value!r}")
        message = str(error.value)
        assert re.match(rf"gankernels\.{op}: .*\b{argument.name}\b.*\bgot\b.*\.$", message), message
        assert ". " not in message, message
