import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fresco.quality import QualityError, fine_energy_ratio, psnr_db, ssim


def pictures(seed, n=2, side=32):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 1000), st.floats(0.01, 0.3))
def test_psnr_follows_from_the_mean_squared_error_of_each_picture(seed, amount):
    reference = pictures(seed)
    images = reference + amount * (pictures(seed + 1) - 0.5) * torch.tensor([1.0, 2.0]).view(
        2, 1, 1, 1
    )
    error = (images - reference).square().mean((1, 2, 3))
    assert torch.allclose(psnr_db(images, reference), -10 * error.log10(), atol=1e-3)


def test_pinned_psnr():
    grey = torch.full((1, 3, 16, 16), 0.5)
    assert psnr_db(grey + 0.01, grey).item() == pytest.approx(40.0, abs=0.01)


def test_equal_pictures_are_infinitely_close():
    images = pictures(0)
    assert psnr_db(images, images).tolist() == [float("inf")] * 2
    assert ssim(images, images).tolist() == pytest.approx([1.0, 1.0])


def test_pinned_ssim_of_constant_pictures():
    # only the luminance term is left: (2 a b + c1) / (a^2 + b^2 + c1), c1 = 1e-4
    a, b = torch.full((1, 3, 16, 16), 0.2), torch.full((1, 3, 16, 16), 0.6)
    assert ssim(a, b).item() == pytest.approx((0.24 + 1e-4) / (0.40 + 1e-4), abs=1e-4)


def test_ssim_falls_as_noise_grows():
    reference = torch.nn.functional.interpolate(pictures(0, 1, 8), size=64, mode="bilinear")
    values = [
        ssim(reference + a * (pictures(1, 1, 64) - 0.5), reference).item() for a in (0.05, 0.2, 0.8)
    ]
    assert values == sorted(values, reverse=True)


@given(st.integers(0, 1000))
def test_white_noise_has_three_quarters_of_its_energy_above_half_resolution(seed):
    noise = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(seed))
    assert fine_energy_ratio(noise).item() == pytest.approx(0.75, abs=0.03)


def test_pinned_fine_energy_of_one_wave_each_side_of_the_border():
    x = torch.arange(32) / 32
    slow, fast = (torch.sin(2 * torch.pi * k * x).expand(1, 3, 32, 32) for k in (7, 9))
    assert fine_energy_ratio(slow).item() == pytest.approx(0.0, abs=1e-5)
    assert fine_energy_ratio(fast).item() == pytest.approx(1.0, abs=1e-5)
    assert fine_energy_ratio(2 * slow + fast).item() == pytest.approx(0.2, abs=1e-4)
    assert fine_energy_ratio(torch.ones(1, 3, 32, 32)).item() == 0


@pytest.mark.parametrize("measure", [psnr_db, ssim])
def test_different_shapes_are_refused_by_both(measure):
    with pytest.raises(QualityError, match=r"got \[1, 3, 8, 8\] and \[1, 3, 16, 16\]"):
        measure(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 16, 16))
