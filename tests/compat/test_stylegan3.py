"""The shim of torch_utils.ops, driven as the code bases that vendor it do."""

import importlib
import pickle
import sys
import textwrap

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import gankernels as gk
from gankernels.compat import stylegan2_ada, stylegan3

X = torch.linspace(-2, 2, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with a torch_utils of its own, whose ops must not be imported."""
    files = {
        "torch_utils/__init__.py": "",
        "torch_utils/misc.py": "def assert_shape(tensor, shape): assert list(tensor.shape) == list(shape)",
        "torch_utils/ops/__init__.py": "",
        "torch_utils/ops/bias_act.py": "raise RuntimeError('this would compile')",
        "torch_utils/ops/own.py": "value = 3",
        "torch_utils/persistence.py": """
            import types

            def _reconstruct_persistent_obj(meta):
                module = types.ModuleType("persisted")
                exec(meta["module_src"], vars(module))
                return vars(module)[meta["class_name"]](**meta["state"])
            """,
    }
    for name, source in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_checkout_keeps_all_but_the_ops(checkout):
    stylegan3.install()
    from torch_utils import misc
    from torch_utils.ops import bias_act, own

    assert own.value == 3
    misc.assert_shape(bias_act.bias_act(X), [2, 3, 8, 8])
    import torch_utils.ops.upfirdn2d

    assert torch_utils.ops.upfirdn2d is sys.modules["torch_utils.ops.upfirdn2d"]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("torch_utils.ops.custom_ops")


def test_an_error_inside_a_checkout_is_not_hidden(checkout):
    (checkout / "torch_utils/__init__.py").write_text("import a_module_that_is_not_there")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        stylegan3.install()


def test_without_a_checkout_the_packages_are_there():
    stylegan3.install()
    from torch_utils.ops import (  # noqa: F401
        bias_act,
        conv2d_gradfix,
        conv2d_resample,
        filtered_lrelu,
        fma,
        grid_sample_gradfix,
        upfirdn2d,
    )

    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("torch_utils.misc")


def test_what_was_assigned_stays():
    stylegan3.install()
    from torch_utils.ops import conv2d_gradfix

    conv2d_gradfix.enabled = True
    stylegan3.install()
    from torch_utils.ops import conv2d_gradfix as again

    assert again is conv2d_gradfix and again.enabled
    conv2d_gradfix.enabled = False


def test_bias_act():
    stylegan3.install()
    from torch_utils.ops import bias_act

    b = torch.randn(3)
    assert bias_act.activation_funcs["lrelu"].def_gain == 2**0.5
    assert bias_act.activation_funcs["lrelu"].def_alpha == 0.2
    assert set(bias_act.activation_funcs) == set("linear relu lrelu tanh sigmoid elu selu softplus swish".split())
    for act in bias_act.activation_funcs:
        ours = bias_act.bias_act(X, b, act=act, gain=0.5, clamp=0.7)
        torch.testing.assert_close(ours, bias_act.bias_act(X, b, 1, act, None, 0.5, 0.7, impl="ref"))
    assert torch.equal(bias_act.bias_act(x=X[:, 0, 0], b=torch.ones(8), act="linear", clamp=-1), X[:, 0, 0] + 1)
    with pytest.raises(ValueError, match="impl must be 'ref' or 'cuda', got 'cpu'"):
        bias_act.bias_act(X, b, impl="cpu")


def test_upfirdn2d():
    stylegan3.install()
    from torch_utils.ops import upfirdn2d

    f = upfirdn2d.setup_filter([1, 3, 3, 1])
    assert f.shape == (4, 4) and upfirdn2d.setup_filter(torch.ones(12)).shape == (12,)
    assert upfirdn2d._get_filter_size(f) == (4, 4) and upfirdn2d._get_filter_size(None) == (1, 1)
    assert upfirdn2d._parse_padding([1, 2]) == (1, 1, 2, 2)
    assert upfirdn2d._parse_padding(3) == (3, 3, 3, 3) and upfirdn2d._parse_padding([1, 2, 3, 4]) == (1, 2, 3, 4)
    assert upfirdn2d._parse_scaling(2) == (2, 2)
    for impl in ("ref", "cuda"):
        torch.testing.assert_close(upfirdn2d.upsample2d(X, f, impl=impl), gk.upsample2d(X, f))
        torch.testing.assert_close(upfirdn2d.downsample2d(x=X, f=f, down=2, impl=impl), gk.downsample2d(X, f))
        torch.testing.assert_close(upfirdn2d.filter2d(X, f, impl=impl), gk.filter2d(X, f))
        ours = upfirdn2d.upfirdn2d(X, f, up=2, down=[1, 3], padding=[2, 1, -1, 2], flip_filter=True, gain=4, impl=impl)
        torch.testing.assert_close(ours, gk.reference.upfirdn2d(X, f, 2, [1, 3], [2, 1, -1, 2], True, 4))


def test_filtered_lrelu():
    stylegan3.install()
    from torch_utils.ops import filtered_lrelu, upfirdn2d

    f, b = upfirdn2d.setup_filter(torch.hann_window(8, periodic=False) + 0.1), torch.randn(3)
    arguments = dict(x=X, fu=f, fd=f, b=b, up=2, down=2, padding=[7, 7, 7, 7], gain=1.5, slope=0.1, clamp=0.8)
    ours = filtered_lrelu.filtered_lrelu(**arguments)
    torch.testing.assert_close(ours, filtered_lrelu.filtered_lrelu(**arguments, impl="ref"))


def test_convolutions_and_their_globals():
    stylegan3.install()
    from torch_utils.ops import conv2d_gradfix, conv2d_resample, upfirdn2d

    w = torch.randn(6, 3, 3, 3, requires_grad=True)
    x = X.clone().requires_grad_()
    assert conv2d_gradfix.enabled is False and conv2d_gradfix.weight_gradients_disabled is False
    for enabled in (False, True):
        conv2d_gradfix.enabled = enabled
        torch.testing.assert_close(conv2d_gradfix.conv2d(input=x, weight=w, padding=1), F.conv2d(x, w, padding=1))
        up = conv2d_gradfix.conv_transpose2d(x.repeat(1, 2, 1, 1), w, stride=2, output_padding=1)
        torch.testing.assert_close(up, F.conv_transpose2d(x.repeat(1, 2, 1, 1), w, stride=2, output_padding=1))
        y = conv2d_gradfix.conv2d(x, w)
        with conv2d_gradfix.no_weight_gradients():
            _, gw = torch.autograd.grad(y.sum(), (x, w), allow_unused=True, create_graph=True)
        assert (gw is None) == enabled
    conv2d_gradfix.weight_gradients_disabled = True
    try:
        with conv2d_gradfix.no_weight_gradients():
            pass
        assert conv2d_gradfix.weight_gradients_disabled  # as before the block
        y = conv2d_gradfix.conv2d(x, w)
        assert torch.autograd.grad(y.sum(), w, allow_unused=True) == (None,)
    finally:
        conv2d_gradfix.weight_gradients_disabled = False
        conv2d_gradfix.enabled = False
    f = upfirdn2d.setup_filter([1, 3, 3, 1])
    ours = conv2d_resample.conv2d_resample(x=x, w=w, f=f, up=2, padding=1, flip_weight=False)
    torch.testing.assert_close(ours, gk.reference.conv2d_resample(x, w, f, up=2, padding=1, flip_weight=False))


def test_modulated_convolutions_of_both_code_bases():
    """As each composes it: weights per sample, in groups; noise after demodulation; gains of the input not demodulated."""
    w, s, f = torch.randn(5, 3, 3, 3), torch.randn(2, 3), gk.setup_filter([1, 3, 3, 1])
    noise = torch.randn(16, 16)

    def per_sample(x, w, **more):
        y = gk.reference.conv2d_resample(x.reshape(1, 6, 8, 8), w.flatten(0, 1), f, padding=1, groups=2, **more)
        return y.reshape(2, 5, *y.shape[2:])

    def demodulated(w):
        return w * (w.square().sum([2, 3, 4], keepdim=True) + 1e-8).rsqrt()

    modulated = w[None] * s[:, None, :, None, None]
    ours = stylegan2_ada.modulated_conv2d(
        x=X, weight=w, styles=s, noise=noise, up=2, padding=1, resample_filter=f, flip_weight=False, fused_modconv=False
    )
    want = per_sample(X, demodulated(modulated), up=2, flip_weight=False) + noise
    torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-5)
    ours = stylegan2_ada.modulated_conv2d(X, w, s, padding=1, demodulate=False, fused_modconv=True)
    torch.testing.assert_close(ours, per_sample(X, modulated), rtol=1e-4, atol=1e-5)

    w, s, gain = 1e-4 * w, 1e-4 * s, torch.tensor(0.7)  # so small that without normalisation the 1e-8 would show
    unit = w * w.square().mean([1, 2, 3], keepdim=True).rsqrt()
    unit = unit[None] * (s * s.square().mean().rsqrt())[:, None, :, None, None]
    ours = stylegan3.modulated_conv2d(x=X, w=w, s=s, padding=1, input_gain=gain)
    torch.testing.assert_close(ours, per_sample(X, gain * demodulated(unit)), rtol=1e-4, atol=1e-5)
    ours = stylegan3.modulated_conv2d(X, w, s, demodulate=False, padding=1)
    torch.testing.assert_close(ours, per_sample(X, w[None] * s[:, None, :, None, None]), rtol=1e-4, atol=1e-12)


def test_grid_sample_and_fma():
    stylegan3.install()
    from torch_utils.ops import fma, grid_sample_gradfix

    x = X.double().requires_grad_()
    grid = (torch.rand(2, 5, 5, 2, dtype=torch.float64) * 2.4 - 1.2).requires_grad_()
    assert grid_sample_gradfix.enabled is False
    plain = grid_sample_gradfix.grid_sample(x, grid)
    grid_sample_gradfix.enabled = True
    try:
        assert torch.equal(grid_sample_gradfix.grid_sample(x, grid), plain)
        assert torch.autograd.gradgradcheck(grid_sample_gradfix.grid_sample, (x[:1, :1, :4, :4], grid[:1, :2, :2]))
    finally:
        grid_sample_gradfix.enabled = False
    torch.testing.assert_close(fma.fma(X, X, X[:1]), X * X + X[:1])


def test_pickles_that_name_the_ops(checkout):
    stylegan3.install()
    function = pickle.loads(b"ctorch_utils.ops.bias_act\nbias_act\n.")
    torch.testing.assert_close(function(X), X)
    assert pickle.loads(pickle.dumps(function)) is function
    source = """
import torch
from torch_utils import misc
from torch_utils.ops import bias_act, upfirdn2d

class Layer(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.register_buffer("f", upfirdn2d.setup_filter([1, 3, 3, 1]))
        self.bias = torch.nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        return bias_act.bias_act(upfirdn2d.upsample2d(x, self.f), self.bias, act="lrelu")
"""

    class Persistent:
        def __reduce__(self):
            from torch_utils.persistence import _reconstruct_persistent_obj

            meta = {"module_src": source, "class_name": "Layer", "state": {"channels": 3}}
            return _reconstruct_persistent_obj, (meta,)

    layer = pickle.loads(pickle.dumps(Persistent()))
    torch.testing.assert_close(layer(X), gk.bias_act(gk.upsample2d(X, layer.f), act="lrelu"))


@pytest.mark.parametrize("number", (np.float32, torch.tensor), ids=("numpy", "tensor"))
@pytest.mark.parametrize("impl", ("ref", "cuda"))
def test_numbers_of_any_kind(number, impl):
    stylegan3.install()
    from torch_utils.ops import bias_act, filtered_lrelu, upfirdn2d

    f = upfirdn2d.setup_filter([1, 3, 3, 1])
    for op, numbers in (
        (bias_act.bias_act, dict(act="lrelu", alpha=0.25, gain=1.5, clamp=0.5)),
        (lambda x, impl, gain: upfirdn2d.upfirdn2d(x, f, gain=gain, impl=impl), dict(gain=1.5)),
        (filtered_lrelu.filtered_lrelu, dict(gain=1.5, slope=0.25, clamp=0.5)),
    ):
        others = {name: value if isinstance(value, str) else number(value) for name, value in numbers.items()}
        assert torch.equal(op(X, impl=impl, **others), op(X, impl=impl, **numbers))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace")
def test_traced():
    stylegan3.install()
    from torch_utils.ops import conv2d_resample, upfirdn2d

    f, weight = upfirdn2d.setup_filter([1, 3, 3, 1]), torch.randn(4, 3, 3, 3)

    def layer(x, styles):
        x = conv2d_resample.conv2d_resample(x, weight, f, up=2, padding=1)
        return stylegan2_ada.modulated_conv2d(x, weight.transpose(0, 1), styles, down=2, padding=1, resample_filter=f)

    styles = torch.rand(2, 4)
    assert torch.equal(torch.jit.trace(layer, (X, styles))(-X, styles), layer(-X, styles))
