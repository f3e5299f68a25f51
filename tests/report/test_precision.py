"""What 8 bits hold, and which operators cost most: the worst come first, and names are harmless."""

from __future__ import annotations

import dataclasses

from report_sample import EVIL, report

from joulec.report import precision
from joulec.report.data import Tensor


def test_the_worst_come_first_and_what_has_no_ratio_last():
    found = report()
    assert [one.name for one in precision.worst(found.tensors)] == [EVIL, "image", "relu1"]
    assert [one.op for one in precision.costliest(found.costs)] == ["MatMul", "Conv", "Gemm"]


def test_pictures_say_it_in_numbers():
    costs, tensors = precision.costs(report()), precision.tensors(report())
    assert costs is not None and tensors is not None
    assert costs.label == "Accuracy cost of 2 operators, the highest 0.5 %"
    assert "0.2 %" in costs.body and "width:40.0%" in costs.body
    assert tensors.label == "Signal to noise of 2 tensors, the lowest 31.5 dB"
    assert "-3 to 3.25, mse, saturated 0.04 %" in tensors.body and "width:52.5%" in tensors.body
    assert "<script>" not in costs.body + tensors.body


def test_nothing_known_is_no_picture_and_many_are_cut():
    bare = dataclasses.replace(report(), costs=(), tensors=(Tensor("x", 0.0, 1.0, "given"),))
    assert precision.costs(bare) is None and precision.tensors(bare) is None
    many = tuple(Tensor(f"t{index}", 0.0, 1.0, "mse", float(index), 0.0) for index in range(30))
    drawn = precision.tensors(dataclasses.replace(bare, tensors=many))
    assert drawn is not None and "and 6 more tensors" in drawn.body
