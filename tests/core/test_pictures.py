"""Pictures: a PNG and an SVG of the same figure, the same bytes each time."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from rnnlm_core.pictures import save_picture, vector


def drawn(values: list[float], path: Path) -> tuple[bytes, bytes]:
    """Draw a curve with a legend and a clipped area, and return both files."""
    figure = Figure(figsize=(3, 2))
    axes = figure.add_subplot()
    axes.plot(values, label="perplexity", marker="o")
    axes.legend()
    path.parent.mkdir(exist_ok=True)
    save_picture(figure, path)
    return path.read_bytes(), vector(path).read_bytes()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[bytes, bytes]:
    """A picture as PNG and as SVG."""
    return drawn([3.0, 1.0, 2.0], tmp_path / "curve.png")


def test_a_picture_is_there_for_viewers_and_for_pages(pair: tuple[bytes, bytes]) -> None:
    png, svg = pair
    assert png.startswith(b"\x89PNG")
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314 - our own


def test_an_equal_figure_has_equal_bytes_and_another_has_others(pair: tuple[bytes, bytes], tmp_path: Path) -> None:
    assert drawn([3.0, 1.0, 2.0], tmp_path / "again" / "curve.png") == pair
    other = drawn([3.0, 1.0, 5.0], tmp_path / "other" / "curve.png")
    assert other[0] != pair[0]
    assert other[1] != pair[1]


def test_a_vector_picture_has_no_background_and_loads_nothing(pair: tuple[bytes, bytes]) -> None:
    text = pair[1].decode()
    (page,) = ElementTree.fromstring(text).iterfind(".//*[@id='patch_1']/*")  # noqa: S314
    assert "fill: none" in page.attrib["style"]
    assert "<script" not in text
    assert "<image" not in text
