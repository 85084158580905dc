"""The generator of StyleGAN3: Karras et al. (2021), arXiv:2106.12423, section 3 and appendices C, D and F.

Signals are continuous: coordinates are of an image that spans [−½, ½], and a map is a sampling of one, at `rate` samples per unit and
`margin` beyond the image's edges. A layer's map has no frequencies that matter above its cutoff, so that a shifted input gives a shifted
image. `ops` is the family of ops that a network is made of: see `ganzoo.training.ops`.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from ganzoo.networks import doublings
from ganzoo.networks.equalized import Linear, mapping, per_layer

MOST = 512  # channels
TAPS = 6  # of a filter, for each time that it up- or downsamples
OVERSAMPLING = 2  # of the map that the leaky ReLU sees
CRITICAL = 2  # last layers, whose cutoff is the image's Nyquist frequency
FIRST_CUTOFF, FIRST_STOPBAND, LAST_STOPBAND = 2.0, 2**2.1, 2**0.3
CLAMP = 256.0
MAGNITUDE_DECAY = 0.999
OUTPUT_SCALE = 0.25


@dataclass(frozen=True)
class Band:
    """What a map holds: up to `cutoff` untouched, nothing from cutoff + `half_width`, at `rate` samples per unit."""

    cutoff: float
    half_width: float
    rate: int
    size: int


def bands(resolution, layers, margin):
    """Those of the input and of every layer's result: cutoffs and stopbands grow geometrically up to the critically sampled layers, and
    rates are the least powers of 2 of twice the stopband, of at most the image's."""
    result = []
    for i in range(layers + 1):
        along = min(i / (layers - CRITICAL), 1)
        cutoff = FIRST_CUTOFF * (resolution / 2 / FIRST_CUTOFF) ** along
        stopband = FIRST_STOPBAND * (resolution / 2 * LAST_STOPBAND / FIRST_STOPBAND) ** along
        rate = 2 ** math.ceil(math.log2(min(2 * stopband, resolution)))
        size = resolution if i >= layers - 1 else rate + 2 * margin
        result.append(Band(cutoff, max(stopband, rate / 2) - cutoff, rate, size))
    return result


def low_pass(taps, band, rate, radial=False):
    """A filter of `taps` taps at a rate that passes a band: a sinc, or as a function of the distance a jinc, under Kaiser's window.

    Separable (taps,), radial (taps, taps). Source: appendix C; Kaiser's formulas for the window: Oppenheim and Schafer.
    """
    attenuation = 2.285 * (taps - 1) * math.pi * 2 * band.half_width / (rate / 2) + 7.95
    beta = 0.1102 * (attenuation - 8.7)
    if attenuation <= 50:
        beyond = max(attenuation - 21, 0)
        beta = 0.5842 * beyond**0.4 + 0.07886 * beyond
    window = torch.kaiser_window(taps, False, beta, dtype=torch.float64)
    at = (torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2) / rate
    if radial:
        distance = torch.hypot(at[:, None], at).clamp(min=1e-9)
        taps = (
            torch.special.bessel_j1(2 * math.pi * band.cutoff * distance) / (math.pi * distance) * window.outer(window)
        )
    else:
        taps = torch.sinc(2 * band.cutoff * at) * window
    return (taps / taps.sum()).float()


class FourierFeatures(nn.Module):
    """Sines of frequencies uniform in the disc below the cutoff, mixed by a matrix, and turned and shifted as an affine function of w says:
    not at all at first."""

    def __init__(self, ops, latent, channels, band):
        super().__init__()
        self.band = band
        angle, radius = 2 * math.pi * torch.rand(channels), band.cutoff * torch.rand(channels).sqrt()
        self.register_buffer("frequencies", torch.stack([radius * angle.cos(), radius * angle.sin()], 1))
        self.register_buffer("phases", torch.rand(channels))
        self.weight = nn.Parameter(torch.randn(channels, channels))
        self.transform = Linear(ops, latent, 4)
        with torch.no_grad():
            self.transform.weight.zero_()
            self.transform.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))

    def forward(self, w, shift, turn):
        """z₀(R⁻¹(T⁻¹p − t)), R and t from w, T a turn by so many radians, then a shift (N, 2)."""
        t = self.transform(w).to(self.frequencies.dtype)
        t = t / t[:, :2].square().sum(1, keepdim=True).sqrt()
        frequencies = rotated(self.frequencies, t[:, 0], t[:, 1])
        phases = self.phases - (frequencies @ t[:, 2:, None]).squeeze(2)
        frequencies = rotated(frequencies, turn.cos(), turn.sin())
        phases = phases - (frequencies @ shift[:, :, None]).squeeze(2)
        at = (torch.arange(self.band.size, device=w.device) - (self.band.size - 1) / 2) / self.band.rate
        x, y = (frequencies[:, :, axis, None] * at.to(phases) for axis in range(2))
        features = (2 * math.pi * (x[:, :, None, :] + y[:, :, :, None] + phases[:, :, None, None])).sin()
        return torch.einsum("oc,nchw->nohw", self.weight / math.sqrt(len(self.weight)), features)


def rotated(vectors, cosine, sine):
    """Vectors (..., 2) turned by angles (N,): (N, ..., 2)."""
    x, y = vectors[..., 0], vectors[..., 1]
    cosine, sine = cosine[:, None], sine[:, None]
    return torch.stack([cosine * x - sine * y, sine * x + cosine * y], -1)


class Synthesis(nn.Module):
    """One layer: the input over the root of its mean square, a running one; a modulated convolution; bias, and leaky ReLU at a higher rate
    than that of either map, between a filter that upsamples and one that downsamples. The last, to the image, has no activation."""

    def __init__(self, ops, latent, inputs, outputs, kernel, before, after, radial, image=False):
        super().__init__()
        self.ops, self.kernel, self.image = ops, kernel, image
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.affine = Linear(ops, latent, inputs, bias=1.0)
        self.register_buffer("magnitude", torch.ones(()))
        rate = max(before.rate, after.rate) * OVERSAMPLING
        self.up, self.down = rate // before.rate, rate // after.rate
        critical = after.rate == 2 * after.cutoff
        up_taps, down_taps = TAPS * self.up, TAPS * self.down
        self.register_buffer("up_filter", low_pass(up_taps, before, rate))
        self.register_buffer("down_filter", low_pass(down_taps, after, rate, radial and not critical))
        total = (after.size - 1) * self.down + 1 - (before.size + kernel - 1) * self.up + up_taps + down_taps - 2
        low = (total + self.up) // 2
        self.padding = [low, total - low] * 2

    def forward(self, x, w):
        gain, styles = self.magnitude.rsqrt(), self.affine(w)
        if self.image:
            styles = styles / math.sqrt(self.weight[0].numel())
            return self.ops.modulated_conv2d(x, self.weight, styles, bias=self.bias, demodulate=False, input_gain=gain)
        x = self.ops.modulated_conv2d(x, self.weight, styles, padding=self.kernel - 1, input_gain=gain)
        filters = self.up_filter, self.down_filter, self.bias.to(x.dtype)
        return self.ops.filtered_lrelu(x, *filters, self.up, self.down, self.padding, clamp=CLAMP)


class Generator(nn.Module):
    """Latents (N, latent) to images (N, C, H, W), which nothing keeps within [−1, 1].

    `mapping`, from z to w (N, latent), is `depth` layers that learn at a hundredth of the others' speed. `synthesis` takes one w per image, or
    w (N, layers, latent), one for each of its `layers` inputs; with `shift` (N, 2), in units of the image, x and y, and `turn` (N,), in
    radians, what it starts from is turned and shifted, and so should be the image. Configuration T has 3×3 convolutions; R, `radial`, 1×1
    ones and downsampling filters of the same form in all directions. `width` is the number of channels at the image's cutoff; it is in
    inverse proportion to it, up to 512.
    """

    def __init__(self, latent, image_shape, width, depth, convolutions, margin, radial, ops):
        super().__init__()
        resolution = 4 << doublings(image_shape)
        chain = bands(resolution, convolutions, margin)
        channels = [min(MOST, round(width * resolution / 2 / band.cutoff)) for band in chain[:-1]] + [image_shape[0]]
        self.layers, kernel = convolutions + 2, 1 if radial else 3
        self.style, self.input = mapping(ops, latent, depth), FourierFeatures(ops, latent, channels[0], chain[0])
        self.convs = nn.ModuleList()
        for i in range(convolutions + 1):
            before, last = max(i - 1, 0), i == convolutions
            sizes = channels[before], channels[i], 1 if last else kernel
            self.convs.append(Synthesis(ops, latent, *sizes, chain[before], chain[i], radial, image=last))

    def mapping(self, z):
        return self.style(z)

    def synthesis(self, w, shift=None, turn=None):
        return self.with_squares(w, shift, turn)[0]

    def with_squares(self, w, shift=None, turn=None):
        """Images, and the mean square of each layer's input, (layers − 1,), for `follow`."""
        w = per_layer(w, self.layers)
        shift = w.new_zeros(len(w), 2) if shift is None else shift
        turn = w.new_zeros(len(w)) if turn is None else turn
        x, squares = self.input(w[:, 0], shift, turn), []
        for number, conv in enumerate(self.convs, start=1):
            squares.append(x.detach().to(conv.magnitude).square().mean())
            x = conv(x, w[:, number])
        return OUTPUT_SCALE * x, torch.stack(squares)

    def follow(self, squares):
        """Let the layers' running mean squares follow those of a batch."""
        for conv, square in zip(self.convs, squares):
            conv.magnitude.lerp_(square, 1 - MAGNITUDE_DECAY)

    def forward(self, z):
        return self.synthesis(self.mapping(z))
