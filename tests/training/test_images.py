import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from dfpjax.training.data.images import (
    centre_box,
    decode,
    normalize,
    random_box,
    random_flip,
    random_shift,
    resize,
)

CHINA, FLOWER = load_sample_images().images


def _encoded(image: Image.Image, file_format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def test_lossless_files_are_decoded_exactly():
    np.testing.assert_array_equal(decode(_encoded(Image.fromarray(CHINA), "PNG")), CHINA)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_photographs_of_every_colour_space_become_rgb(mode):
    decoded = decode(_encoded(Image.fromarray(CHINA).convert(mode), "JPEG", quality=95))
    expected = CHINA.astype(float)
    if mode == "L":  # ITU-R BT.601
        expected = np.repeat(CHINA @ np.array([0.299, 0.587, 0.114])[:, None], 3, axis=-1)
    assert (decoded.shape, decoded.dtype) == (CHINA.shape, np.uint8)
    assert np.abs(decoded - expected).mean() < 5


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA"])
def test_drawings_of_every_mode_become_rgb(mode):
    image = np.zeros((4, 6, 3), np.uint8)
    image[:, 3:] = 255
    np.testing.assert_array_equal(decode(_encoded(Image.fromarray(image).convert(mode), "PNG")), image)


def test_a_file_cut_short_is_an_error():
    encoded = _encoded(Image.fromarray(CHINA), "JPEG")
    with pytest.raises(OSError, match="truncated"):
        decode(encoded[: len(encoded) // 2])
    with pytest.raises(OSError, match="cannot identify"):
        decode(b"no image")


def test_halving_weighs_neighbours_as_the_antialiased_triangle_filter_does():
    image = np.random.default_rng(0).integers(256, size=(16, 16, 1), dtype=np.uint8)
    # At half scale the triangle extends two pixels to each side of a pixel's centre.
    rows = np.zeros((8, 16))
    for row in range(8):
        for source in range(16):
            rows[row, source] = max(0, 1 - abs((source + 0.5) / 2 - (row + 0.5)))
    rows /= rows.sum(axis=1, keepdims=True)
    expected = rows @ image[..., 0] @ rows.T
    scaled = resize(image, 8, (0, 0, 16, 16))
    assert (scaled.shape, scaled.dtype) == ((8, 8, 1), np.uint8)
    assert np.abs(scaled[..., 0] - expected).max() <= 1  # rounded after each of the two passes


def test_a_box_of_the_wanted_size_is_cut_out_exactly():
    np.testing.assert_array_equal(resize(CHINA, 100, (30, 20, 130, 120)), CHINA[20:120, 30:130])


@pytest.mark.parametrize(("height", "width"), [(512, 640), (640, 512), (256, 256)])
def test_the_centre_is_that_of_the_image_scaled_to_256_pixels(height, width):
    # Multiples of 256, so the scaled image and its margins have whole numbers of pixels.
    image = Image.fromarray(FLOWER).resize((width, height))
    scale = min(height, width) // 256
    small = image.resize((width // scale, height // scale), Image.Resampling.BILINEAR)
    left, top = (small.width - 224) // 2, (small.height - 224) // 2
    expected = np.asarray(small.crop((left, top, left + 224, top + 224)))
    found = resize(np.asarray(image), 224, centre_box(height, width))
    np.testing.assert_array_equal(found, expected)


def test_random_boxes_have_the_areas_and_shapes_asked_for():
    random = np.random.default_rng(0)
    boxes = np.array([random_box(375, 500, 0.08, random) for _ in range(4000)])
    assert boxes.dtype == np.int64
    left, top, right, bottom = boxes.T
    assert left.min() == top.min() == 0
    assert (right.max(), bottom.max()) == (500, 375)
    widths, heights = right - left, bottom - top
    areas, ratios = widths * heights / (375 * 500), widths / heights
    assert 0.078 < areas.min() < 0.1
    assert areas.max() > 0.95
    assert 0.73 < ratios.min() < 0.76
    assert 1.32 < ratios.max() < 1.36
    # Small boxes always fit. Among them, areas and logarithms of aspect ratios are uniformly distributed.
    small = areas < 0.5
    quantiles = np.quantile(areas[small], [0.25, 0.5, 0.75])
    np.testing.assert_allclose(quantiles, np.linspace(0.08, 0.5, 5)[1:-1], atol=0.02)
    assert abs(np.log(ratios[small]).mean()) < 0.02


@pytest.mark.parametrize(
    ("height", "width", "box"), [(10, 100, (43, 0, 56, 10)), (100, 10, (0, 43, 10, 56)), (1, 1, (0, 0, 1, 1))]
)
def test_where_no_random_box_fits_the_largest_in_the_middle_is_taken(height, width, box):
    assert random_box(height, width, 1.0, np.random.default_rng(0)) == box


@pytest.mark.parametrize("most", [0, 1, 2])
def test_each_image_of_a_batch_is_shifted_by_an_offset_of_its_own(most):
    images = np.zeros((2500, 8, 9, 1), np.uint8)
    images[:, 3, 4] = 1
    shifted = random_shift(images, most, np.random.default_rng(0))
    assert (shifted.shape, shifted.dtype) == (images.shape, np.uint8)
    numbers, rows, columns, _ = np.nonzero(shifted)
    np.testing.assert_array_equal(numbers, range(2500))
    reach = range(-most, most + 1)
    counts = Counter(zip(rows - 3, columns - 4, strict=True))
    assert counts.keys() == {(down, right) for down in reach for right in reach}
    # All offsets are equally likely. The tolerance is six standard deviations.
    expected = 2500 / len(reach) ** 2
    assert max(abs(count - expected) for count in counts.values()) <= 6 * np.sqrt(expected)


def test_what_is_shifted_out_of_an_image_is_gone():
    images = np.stack([CHINA[:5, :7], FLOWER[:5, :7]])
    for shifted, image in zip(random_shift(images, 3, np.random.default_rng(3)), images, strict=True):
        padded = np.pad(image, ((3, 3), (3, 3), (0, 0)))
        views = [padded[top : top + 5, left : left + 7] for top in range(7) for left in range(7)]
        assert sum(np.array_equal(shifted, view) for view in views) == 1


def test_half_of_the_images_of_a_batch_are_mirrored():
    images = np.tile(np.stack([CHINA[:2, :3], FLOWER[:2, :3]]), (500, 1, 1, 1))
    flipped = random_flip(images, np.random.default_rng(0))
    assert (flipped.shape, flipped.dtype) == (images.shape, np.uint8)
    mirrored = 0
    for image, original in zip(flipped, images, strict=True):
        mirrored += np.array_equal(image, np.fliplr(original))
        assert np.array_equal(image, np.fliplr(original)) or np.array_equal(image, original)
    assert 450 < mirrored < 550


def test_normalisation():
    mean, deviation = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    images = np.stack([CHINA, FLOWER])
    normal = normalize(images, mean, deviation)
    assert normal.dtype == np.float32
    expected = (images.astype(np.float64) - [1, 2, 3]) / [4, 5, 6]
    np.testing.assert_allclose(normal, expected, rtol=1e-6, atol=1e-6)
