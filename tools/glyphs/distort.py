"""Clean glyphs -> pictures of letters, in PyTorch: the same code for training (GPU) and for the
held-out images (CPU, seeded).

A picture is 32x32 RGB: the glyph under a random affine map and a smooth random displacement, thicker
or thinner, in one colour on a ground of two others, with specks, a stroke across, blur and noise.
`level`, one number or one for each picture, scales all of that.
"""
import torch
import torch.nn.functional as F

SIDE = 32


def unpack(packed):
    """uint8 [..., 40, 20] -> float [..., 40, 40] in 0..1."""
    return torch.stack((packed >> 4, packed & 15), -1).flatten(-2).float() / 15


def uniform(generator, shape, low, high, device):
    return torch.rand(shape, generator=generator, device=device) * (high - low) + low


def smooth(generator, count, channels, cells, device):
    coarse = torch.randn(count, channels, cells, cells, generator=generator, device=device)
    return F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic", align_corners=True)


def places(g, n, level, device):
    """Where each pixel of the picture looks in the glyph: [n, 32, 32, 2]."""
    def u(low, high):
        return uniform(g, (n,), low, high, device)
    angle, shear = u(-0.45, 0.45) * level, u(-0.4, 0.4) * level
    wide, high = torch.exp(u(-0.35, 0.45) * level), torch.exp(u(-0.35, 0.45) * level)
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = torch.stack((torch.stack((cos * wide, (shear * cos - sin) * high, u(-0.2, 0.2) * level), -1),
                        torch.stack((sin * wide, (shear * sin + cos) * high, u(-0.2, 0.2) * level), -1)), 1)
    grid = F.affine_grid(rows, (n, 1, SIDE, SIDE), align_corners=False) * 0.9
    bend = smooth(g, n, 2, 5, device) * (u(0, 0.10) * level)[:, None, None, None]
    return grid + bend.permute(0, 2, 3, 1)


def stroke(g, n, level, device):
    """A line across, in the glyph's colour, for a part of the pictures."""
    axis = torch.linspace(-1, 1, SIDE, device=device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    angle, offset = uniform(g, (n,), 0, 3.1416, device), uniform(g, (n,), -0.6, 0.6, device)
    distance = (x[None] * torch.cos(angle)[:, None, None] + y[None] * torch.sin(angle)[:, None, None]
                - offset[:, None, None]).abs()
    there = (torch.rand(n, generator=g, device=device) < 0.35 * level).float()
    return ((0.07 - distance) * 20).clamp(0, 1) * there[:, None, None]


def distort(glyphs, generator, level=1.0):
    """glyphs: float [n, 40, 40]. -> uint8 [n, 3, 32, 32]."""
    n, device, g = glyphs.shape[0], glyphs.device, generator
    levels = torch.as_tensor(level, dtype=torch.float32, device=device).expand(n)
    level = levels[:, None, None, None]
    ink = glyphs[:, None]
    weight = uniform(g, (n, 1, 1, 1), -0.9, 0.9, device) * level
    thick, thin = F.max_pool2d(ink, 3, 1, 1), -F.max_pool2d(-ink, 3, 1, 1)
    ink = ink + weight.clamp(min=0) * (thick - ink) + (-weight).clamp(min=0) * 0.7 * (thin - ink)
    ink = F.grid_sample(ink, places(g, n, levels, device), mode="bilinear", align_corners=False)
    blurred = F.avg_pool2d(F.pad(ink, (1, 1, 1, 1), mode="replicate"), 3, 1)
    ink = torch.lerp(ink, blurred, uniform(g, (n, 1, 1, 1), 0, 1, device) * level.clamp(max=1))
    ink = torch.maximum(ink, stroke(g, n, levels, device)[:, None])
    specks = (smooth(g, n, 1, 9, device) * uniform(g, (n, 1, 1, 1), 0, 0.22, device) * level)
    ground = torch.rand(n, 3, 1, 1, generator=g, device=device)
    second = (ground + 0.35 * level * torch.randn(n, 3, 1, 1, generator=g, device=device)).clamp(0, 1)
    shade = torch.sigmoid(2 * smooth(g, n, 1, 3, device))
    colour = torch.rand(n, 3, 1, 1, generator=g, device=device)
    # Enough contrast: a colour too near to the ground is turned over.
    near = (colour - ground).abs().mean(1, keepdim=True) < 0.25
    colour = torch.where(near, (ground + 0.5) % 1.0, colour)
    picture = torch.lerp(ground, second, shade)
    picture = torch.lerp(picture, colour.expand(-1, -1, SIDE, SIDE), ink.clamp(0, 1))
    noise = torch.randn(n, 3, SIDE, SIDE, generator=g, device=device)
    picture = picture + specks + noise * uniform(g, (n, 1, 1, 1), 0, 0.15, device) * level
    return (picture.clamp(0, 1) * 255 + 0.5).to(torch.uint8)
