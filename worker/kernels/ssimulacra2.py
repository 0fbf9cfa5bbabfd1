"""SSIMULACRA 2.1, how alike two images look to people: 100 where nothing is lost, 90 where nothing is seen, 70 hard to see, 50 medium, 30 low, negative beyond.

By Jon Sneyers (Cloudinary), https://github.com/cloudinary/ssimulacra2, BSD: in XYB, at six scales (halved in linear light), for each of the three planes the means and the fourth norms of
three maps: what SSIM misses, edges that were not there, and edges that are gone; a weighted sum of these 108 figures, brought to the scale of viewers' scores. Its Gaussian of 1.5 pixels
is the truncated sum of cosines of libjxl (Charalampidis 2016), zeros around the image. Large images are judged in strips of rows which overlap by what a window sees.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from worker.kernels.windows import means

SCALES, RADIUS, SIGMA = 6, 5, 1.5
_C2 = 0.0009
_BIAS = 0.0037930732552754493
_OPSIN = torch.tensor([[0.30, 0.622, 0.078], [0.23, 0.692, 0.078], [0.24342268924547819, 0.20476744424496821, 0.55181286630956060]])
_WEIGHTS = {
    # plane, scale -> of the mean, then of the fourth norm: (what SSIM misses, new edges, lost edges); all others are 0
    (0, 0): ((0.0, 0.0007376606707406586, 0.0), (0.0, 0.0007793481682867309, 0.0)),
    (0, 1): ((0.0, 0.0004371155730107379, 0.0), (1.1041726426657346, 0.00066284834129271, 0.00015231632783718752)),
    (0, 2): ((0.0, 0.0016406437456599754, 0.0), (1.8422455520539298, 11.441172603757666, 0.0)),
    (0, 3): ((0.0007989109436015163, 0.000176816438078653, 0.0), (1.8787594979546387, 10.94906990605142, 0.0)),
    (0, 4): ((0.0007289346991508072, 0.9677937080626833, 0.0), (0.00014003424285435884, 0.9981766977854967, 0.00031949755934435053)),
    (0, 5): ((0.0004550992113792063, 0.0, 0.0), (0.0013648766163243398, 0.0, 0.0)),
    (1, 0): ((0.0, 0.0, 0.0), (7.466890328078848, 0.0, 17.445833984131262)),
    (1, 1): ((0.0006235601634041466, 0.0, 0.0), (6.683678146179332, 0.00037724407979611296, 1.027889937768264)),
    (1, 2): ((225.20515300849274, 0.0, 0.0), (19.213238186143016, 0.0011401524586618361, 0.001237755635509985)),
    (1, 3): ((176.39317598450694, 0.0, 0.0), (24.43300999870476, 0.28520802612117757, 0.0004485436923833408)),
    (1, 4): ((0.0, 0.0, 0.0), (34.77906344483772, 44.835625328877896, 0.0)),
    (2, 0): ((0.0, 0.0008680556573291698, 0.0), (0.0, 0.0, 0.0)),
    (2, 1): ((0.0, 0.0005313191874358747, 0.0), (0.00016533814161379112, 0.0, 0.0)),
    (2, 2): ((0.0, 0.0, 0.0), (0.0004179171803251336, 0.0017290828234722833, 0.0)),
    (2, 3): ((0.0020827005846636437, 0.0, 0.0), (8.826982764996862, 23.19243343998926, 0.0)),
    (2, 4): ((95.1080498811086, 0.9863978034400682, 0.9834382792465353), (0.0012286405048278493, 171.2667255897307, 0.9807858872435379)),
    (2, 5): ((0.0, 0.0, 0.0), (0.0005130064588990679, 0.0, 0.00010854057858411537)),
}
_STRIP = 1 << 21
"""Pixels that are judged at once, about; of an image of one strip what is known of the reference is kept."""
_HALO = 6 << SCALES - 1
"""Rows about a strip: a window's at the coarsest scale."""


class Ssimulacra2:
    """Against one reference.

    Args:
        reference: [C, H, W] uint8, C 1 (grey), 3 (RGB) or 4 (with alpha: over a dark and a light ground, the worse counts).
    """

    def __init__(self, reference: torch.Tensor):
        self.reference = reference
        self._known: dict[tuple, list[torch.Tensor]] = {}

    def __call__(self, image: torch.Tensor) -> float:
        """Of an image of the same shape.

        Raises:
            ValueError: it has another shape.
        """
        if image.shape != self.reference.shape:
            raise ValueError(f"an image of shape {tuple(image.shape)} is held against one of {tuple(self.reference.shape)}")
        return min(self._score(image, ground) for ground in ((0.1, 0.9) if len(image) == 4 else (0.0,)))

    def _score(self, image: torch.Tensor, ground: float) -> float:
        height, width = image.shape[1:]
        rows = max(1, _STRIP // width >> SCALES - 1) << SCALES - 1
        sums: dict[int, torch.Tensor] = {}
        for top in range(0, height, rows):
            first, last = max(0, top - _HALO), min(height, top + rows + _HALO)
            known = self._of_reference(first, last, ground, keep=rows >= height)
            for scale, (a, b) in enumerate(zip(known, _scales(_light(image[:, first:last], ground), height, width), strict=True)):
                inner = slice((top - first) >> scale, ((top - first) >> scale) + -(-min(rows, height - top) >> scale))
                sums[scale] = sums.get(scale, 0) + _lost(a, b, inner)
        total = 0.0
        for scale, found in sums.items():
            means = found / (-(-height // 2**scale) * -(-width // 2**scale))
            for plane in range(3):
                mean, fourth = _WEIGHTS.get((plane, scale), ((0.0,) * 3,) * 2)
                total += sum(w * float(m) for w, m in zip(mean, means[plane, 0], strict=True)) + sum(w * float(m) ** 0.25 for w, m in zip(fourth, means[plane, 1], strict=True))
        total *= 0.9562382616834844
        total = 2.326765642916932 * total - 0.020884521182843837 * total**2 + 6.248496625763138e-05 * total**3
        return 100 - 10 * total**0.6276336467831387 if total > 0 else 100.0

    def _of_reference(self, first: int, last: int, ground: float, keep: bool) -> list[torch.Tensor]:
        if (found := self._known.get((first, last, ground))) is not None:
            return found
        made = list(_scales(_light(self.reference[:, first:last], ground), *self.reference.shape[1:]))
        if keep:
            self._known[first, last, ground] = made
        return made


def _light(planes: torch.Tensor, ground: float) -> torch.Tensor:
    """[C, H, W] uint8 -> [3, H, W] in linear light."""
    if len(planes) == 4:
        alpha = planes[3:].float() / 255
        return _linear(alpha * (planes[:3].float() / 255) + (1 - alpha) * ground)
    return _linear(torch.arange(256) / 255)[planes.long()].expand(3, -1, -1)


def _linear(x: torch.Tensor) -> torch.Tensor:
    """Of sRGB's values, 0 to 1."""
    return torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def _scales(light: torch.Tensor, height: int, width: int) -> Iterator[torch.Tensor]:
    """Of each scale [3, 3, h, w]: planes, their blur, and that of their squares. Args: height, width: of the whole image, which say how many scales there are."""
    for scale in range(SCALES):
        if min(-(-height // 2 ** max(0, scale - 1)), -(-width // 2 ** max(0, scale - 1))) < 8:
            return
        if scale:
            light = F.avg_pool2d(F.pad(light, (0, light.shape[2] % 2, 0, light.shape[1] % 2), mode="replicate")[None], 2)[0]
        planes = _xyb(light)
        yield torch.stack([planes, _blurred(planes), _blurred(planes * planes)])


def _xyb(light: torch.Tensor) -> torch.Tensor:
    """Planes X, Y and B - Y, about 0 to 1."""
    cones = (torch.einsum("oc,chw->ohw", _OPSIN, light) + _BIAS).clamp(min=0)
    cones = torch.pow(cones, 1 / 3) - _BIAS ** (1 / 3)
    x, y = (cones[0] - cones[1]) / 2, (cones[0] + cones[1]) / 2
    return torch.stack([14 * x + 0.42, y + 0.01, cones[2] - y + 0.55])


def _lost(a: torch.Tensor, b: torch.Tensor, inner: slice) -> torch.Tensor:
    """[plane, norm, map] sums of values, and of their fourth powers, over rows. Args: a, b: of `_scales`, of the original and the image."""
    (x, mx, xx), (y, my, yy) = a, b
    both = _blurred(x * y)
    structure = (2 * (both - mx * my) + _C2) / ((xx - mx * mx) + (yy - my * my) + _C2)
    missed = (1 - (1 - (mx - my) ** 2) * structure).clamp(min=0)
    edges = (1 + (y - my).abs()) / (1 + (x - mx).abs()) - 1
    maps = torch.stack([missed, edges.clamp(min=0), (-edges).clamp(min=0)], 1)[:, :, inner]
    return torch.stack([x.sum((2, 3), dtype=torch.float64) for x in (maps, maps.square().square())], 1)


def _blurred(planes: torch.Tensor) -> torch.Tensor:
    """[C, H, W], each by itself, zeros around."""
    return means(F.pad(planes, (RADIUS,) * 4), _KERNEL, _KERNEL)


def _kernel() -> tuple[float, ...]:
    """[2 * RADIUS + 1]: sum of three cosines whose weights make it a Gaussian's, as far as its sum, its spread and its third term go (equations 37 to 56 of the paper)."""
    omega = np.pi / (2 * RADIUS) * np.array([1, 3, 5])
    sign = np.array([1, -1, 1])
    p = sign / np.tan(omega / 2)
    r = sign * p * p / np.sin(omega)
    rho = np.exp(-SIGMA * SIGMA * omega * omega / 2) / RADIUS
    zeta = np.array([p[1] * r[2] - r[1] * p[2], p[2] * r[0] - r[2] * p[0]]) / (p[0] * r[1] - r[0] * p[1])
    beta = np.linalg.solve(np.array([p, r, [*zeta, 1]]), [1, RADIUS**2 - SIGMA**2, zeta @ rho[:2] + rho[2]])
    n = np.arange(-RADIUS, RADIUS + 1)
    return tuple((beta[:, None] * np.cos(omega[:, None] * n)).sum(0).tolist())


_KERNEL = _kernel()
