from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from ganzoo.networks import stylegan_t
from ganzoo.networks.exported import Exported
from ganzoo.networks.vit import ViT
from ganzoo.objectives import contrastive, hinge_discriminator, hinge_generator
from ganzoo.options import Betas, Count, Decay, NotNegative, Positive, Share
from ganzoo.variants.base import Networks, Player, register
from ganzoo.variants.captioned import Captioned
from ganzoo.variants.styled import Styled

HIDDEN = 0.25
"""Share of the patches that the small transformer learns to rebuild."""


@register("stylegan-t")
@dataclass
class StyleGANT(Styled, Captioned):
    """StyleGAN-T: images of captions, by a style-based generator against heads on the features of a frozen vision transformer.

    L_D = E max(0, 1 − ℓ(T(x), c)) + E max(0, 1 + ℓ(T(G(z, c)), c)), L_G = −E ℓ(T(G(z, c)), c) + λ E arccos² cos(e(G(z, c)), c),
    c = t(caption), ℓ the scores of all tokens of several layers of the transformer, each in the hinge by itself; T the technique diffaugment,
    which e, the transformer's own code of an image, does not see.

    w = [f(z), c]: text that went through the mapping network f would be drowned by z. So the mean of w for a caption, towards which samples
    are truncated, is [E f(z), c].

    The paper's e and t are CLIP's, its features another transformer's, DINO's. Here one small transformer is both; it and a text encoder learn
    on the data in the first steps, L = InfoNCE(e(x), t(caption)) + E (hidden patches − those rebuilt from the others)², and stay from then
    on. Files put others in their place; where one is left out, the small one is trained to match. The paper's second phase, which trains the
    generator's text encoder, is left out.

    Source: Sauer et al. (2023), arXiv:2301.09515, section 3.
    """

    samplers = ("generator", "text", "captions", "w_mean")
    techniques: tuple[str, ...] = ("diffaugment",)
    batch: Count = 64
    mixing: Share = 0.0
    """Share of the images with two styles in training."""
    pretraining: Count = 300
    """The first steps, in which those of transformer and text encoder learn that come from no file."""
    vit: str = ""
    """File of a network saved by torch.export.save for batches of any size: images (N, C, H, W) in [−1, 1] to a tuple of codes (N, code) and
    several layers' tokens (N, L, D)."""
    text: str = ""
    """File of a network saved in the same way: captions (N, T), numbers of words, to codes (N, code)."""
    patch: Count = 2
    """Sides of the small transformer's patches, in pixels."""
    tokens: Count = 32
    """Width of the small transformer's tokens."""
    guidance_weight: NotNegative = 0.2
    """λ, the weight of the angle between the codes of image and caption."""
    ema: Decay = 0.99
    lr: Positive = 5e-3
    """Adam's learning rate."""
    betas: Betas = (0.0, 0.99)
    """Adam's decay rates."""

    def networks(self, data, ops):
        captions, images = self.no_captions(data), torch.zeros(2, *data.shape)
        generator = stylegan_t.Generator(self.latent, self.code, data.shape, self.width, self.depth, ops)
        vit, text = self.image_encoder(data, ops), self.text_encoder(data)
        with torch.no_grad():
            dims = [tokens.shape[2] for tokens in vit(images)[1:]]
        discriminator = stylegan_t.Discriminator(dims, 2 * self.width, self.code, ops)
        return Networks(
            generator=generator,
            discriminator=ops.spectral_norm(discriminator),
            vit=vit,
            text=text,
            captions=captions,
            w_mean=torch.zeros(self.latent),
        )

    def image_encoder(self, data, ops):
        if not self.vit:
            return ViT(data.shape, self.tokens, self.code, self.patch, ops)

        def fits(results):
            code, *layers = results
            return code.shape == (2, self.code) and layers and all(tokens.dim() == 3 for tokens in layers)

        what = f"a network of images to codes (N, {self.code}) and layers' tokens (N, L, D)"
        return Exported("vit", self.vit).fitting(what, torch.zeros(2, *data.shape), fits)

    def text_encoder(self, data):
        if not self.text:
            return super().text_encoder(data)
        (words,) = data.fields["caption"]
        what = f"a network of captions (N, {words}) to codes (N, {self.code})"
        example = torch.zeros(2, words, dtype=torch.int64)
        return Exported("text", self.text).fitting(what, example, lambda codes: codes.shape == (2, self.code))

    def encoders_loss(self, networks, draw, ops):
        batch = draw.batch()
        x, vit = batch["image"], networks.vit
        contrast = contrastive(vit(x)[0], networks.text(batch["caption"]))
        if self.vit:
            return contrast, {}
        # as many of each image, so that the error is a mean over images
        hidden = draw.uniform(vit.patches).argsort(1) < HIDDEN * vit.patches
        rebuilding = vit.rebuilding_error(x, hidden)
        return contrast + rebuilding, {"contrast": contrast, "rebuilding": rebuilding}

    def discriminator_loss(self, networks, draw, ops):
        batch = draw.batch()
        code = networks.text(batch["caption"])
        real = networks.discriminator(batch["image"], code, networks.vit)
        fake = networks.discriminator(self.generated(networks, draw, code)[0], code, networks.vit)
        return hinge_discriminator(real, fake), {}

    def generator_loss(self, networks, draw, ops):
        code = networks.text(draw.batch()["caption"])
        fake, means = self.generated(networks, draw, code)
        cosine = F.cosine_similarity(networks.vit(fake)[0].float(), code.float())
        angle = cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos().square().mean()  # within what acos has a slope at
        loss = hinge_generator(networks.discriminator(fake, code, networks.vit)) + self.guidance_weight * angle
        return loss, {"guidance": angle, **means}

    def mean_style(self, networks, w):
        return super().mean_style(networks, w[:, :, : self.latent])

    def players(self, ops):
        adam, learning = partial(ops.Adam, lr=self.lr, betas=self.betas), self.learning()
        players = {
            "discriminator": Player(("discriminator",), self.discriminator_loss, adam),
            "generator": Player(("generator",), self.generator_loss, adam, ema=self.ema, after=self.follow),
        }
        return {"encoders": Player(learning, self.encoders_loss, adam, ema=None), **players} if learning else players

    def learning(self):
        """Names of the encoders that come from no file."""
        return tuple(name for name in ("vit", "text") if not getattr(self, name))

    def schedule(self, step):
        return ["encoders"] if step < self.pretraining and self.learning() else ["discriminator", "generator"]

    def condition(self, networks, labels):
        return networks.text(super().condition(networks, labels))

    def sample(self, networks, latents, labels=None):
        generator, code = networks.generator, self.condition(networks, labels)
        styles = networks.w_mean.lerp(generator.style(latents), self.truncation)
        return generator.synthesis(generator.with_text(styles, code)).clamp(-1, 1)

    def scores(self, networks, images, labels=None):
        return networks.discriminator(images, self.condition(networks, labels), networks.vit).mean(1)
