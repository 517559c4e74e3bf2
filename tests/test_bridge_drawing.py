"""The picture of hybrids shows every value where it is, whatever its size."""

import re

import pytest

from sparse_circuits.bridges.drawing import draw_hybrids


@pytest.mark.parametrize("values", [[0.02, 0.3, 5.0], [0.02, 11.0, 14.0], [0.0003, 0.0005, 2.0]])
def test_each_kl_has_a_height_of_its_own(values):
    transitions = [
        {"site": site, "to": to, "kind": "trained", "kl": kl * (1 + (to == "dense"))}
        for site, kl in enumerate(values)
        for to in ("sparse", "dense")
    ]
    picture = draw_hybrids({"bridge": "trained", "transitions": transitions, "anchors": []})
    lines = [line for line in re.findall(r'(?:points|d)="([^"]+)"', picture) if line.count(",") + line.count(" ") >= 3]
    heights = {float(y) for line in lines for y in re.findall(r"[\d.]+[ ,]([\d.]+)", line)}
    assert len(heights) == 2 * len(values)
