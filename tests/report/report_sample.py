"""A report made by hand that uses every part of the page and the terminal."""

from __future__ import annotations

from typing import Any

from joulec.report.data import (
    Accuracy,
    Cost,
    Decision,
    EnergyChange,
    Latency,
    Point,
    RefusalReport,
    Report,
    RungReport,
    Sparsity,
    StepReport,
    Tensor,
)

EVIL = 'x<script>alert(1)</script>[red]"&\x1b[31m\u202e/node'
"""A name that a hostile model might carry."""


def node(name: str, op: str, joules: float | None, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "op": op,
        "joules": joules,
        "low": None if joules is None else joules / 3,
        "high": None if joules is None else joules * 3,
        "tier": "estimated",
        "flops": 1_180_000,
        "bytes": 421_000,
        "kernel": f"{op} fp32",
        "domain": "",
        "seconds": None,
        "repeats": 1,
        **more,
    }


def estimate(nodes: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    total = sum(n["joules"] or 0.0 for n in nodes)
    return {
        "total_joules": total,
        "low": total / 3,
        "high": total * 3,
        "tier": "estimated",
        "device": "generic-server-cpu",
        "nodes": nodes,
        "unknown": [],
        "assumed": [],
        "samples": 1,
        "joules_per_sample": total,
        "seconds": 1e-4,
        "static_included": True,
        "notes": [],
        **more,
    }


def points() -> tuple[Point, ...]:
    return (
        Point(9, 9, 0.031, 0.036, None, None, None, 4.2e-4, reason="it drops 0.0310, the budget is 0.01"),
        Point(6, 9, 0.0061, 0.0078, 1.53, 1.49, 1.58, 4.4e-4, reason="another set is faster"),
        Point(5, 9, 0.0014, 0.0031, 1.47, 1.43, 1.5, 4.49e-4, kept=True),
        Point(4, 9, 0.0022, 0.0040, 1.31, 1.28, 1.33, 5.1e-4),
        Point(2, 9, 0.0003, 0.0011, 1.18, 1.15, 1.2, 6.0e-4),
    )


def report(name: str = "conv1/Conv") -> Report:
    before = estimate(
        [
            node("conv1", "Conv", 9.1e-4),
            node("bn1", "BatchNormalization", 6e-5),
            node("relu", "Relu", 4e-5),
            node("t1", "Transpose", 8e-5),
            node("fc", "MatMul", 5e-5),
            node("add", "Add", 1e-5),
        ]
    )
    after = estimate(
        [
            node(name, "Conv", 3.9e-4, kernel="QLinearConv u8 x s8"),
            node("fc", "Gemm", 3.8e-5),
            node("q", "QuantizeLinear", 2.1e-5),
            node("mystery", "Mystery", None, domain="com.acme", flops=None, bytes=None, kernel="unknown operator"),
        ],
        unknown=["com.acme::Mystery"],
        assumed=["batch"],
    )
    by_op = (
        ("Conv", 9.1e-4, 3.9e-4),
        ("Transpose", 8e-5, None),
        ("BatchNormalization", 6e-5, None),
        ("MatMul", 5e-5, None),
        ("Relu", 4e-5, None),
        ("Gemm", None, 3.8e-5),
        ("QuantizeLinear", None, 2.1e-5),
        ("Add", 1e-5, None),
    )
    change = {"joules": 7.01e-4, "low": 4.2e-4, "high": 1.1e-3, "detectable": True}
    return Report(
        joulec="0.1.0",
        model="digits_wide.keras",
        format="keras",
        target="cpu",
        device="generic-server-cpu",
        status="written",
        orders=("--sparsity 0.5", "--max-drop 0.01"),
        steps=steps(name),
        decisions=decisions(),
        nodes_before=66,
        nodes_after=31,
        size_before=1_240_000,
        size_after=331_000,
        accuracy=Accuracy("metric", 0.9917, 0.9903, 0.0014, 0.01, "the metric's own data"),
        latency=Latency(2.113, 1.402, 1.507, 1.471, 1.544, 1800, 1),
        energy=EnergyChange(before, after, by_op, change),
        checks=(
            RungReport("onnx checker", "passed", "full check and strict shape inference"),
            RungReport("opset and IR", "passed", "ai.onnx 19, IR 9"),
            RungReport("opens and runs", "passed", "3 QLinearConv, 1 QGemm in the runtime's own graph"),
            RungReport("real device", "skipped", "no GPU on this machine"),
        ),
        sparsity=(
            Sparsity("conv1/kernel", 4608, 9216),
            Sparsity(f"{name}/w", 36_864, 73_728),
            Sparsity("fc/kernel", 2000, 10_240),
        ),
        points=points(),
        costs=(Cost("relu1", "Conv", 4e-6), Cost(EVIL, "MatMul", 2.5e-5), Cost("z", "Gemm", 0.0)),
        tensors=(
            Tensor("image", 0.0, 1.0, "minmax", 50.25, 0.0), Tensor(EVIL, -3.0, 3.25, "mse", 31.5, 0.0004),
            Tensor("relu1", 0.0, 2.5, "given"),
        ),
        notes=("data: 300 feeds from calib.npz", "the input's dimension 'batch' was taken as 1"),
        compressed_before=1_148_000,
        compressed_after=187_000,
        parity={"outputs": {name: 2.4e-7}, "feeds": 2, "note": None},
        files={
            "model.onnx": 331_400,
            "session.json": 310,
            "report.html": 30_112,
            "decisions.json": 2_210,
            "masks.npz": 11_820,
        },
        directory="build/digits_wide",
    )


def steps(name: str = "conv1/Conv") -> tuple[StepReport, ...]:
    refused = (
        RefusalReport("fuse-batch-norm", name, "bias has rank 3"),
        RefusalReport("fuse-add", "add2", "used twice"),
    )

    def step(
        spelling: str, status: str, rewrites: int, nodes: tuple[int, int], energy: tuple[float, float], **more: Any
    ) -> StepReport:
        values: dict[str, Any] = {
            "fidelity": "exact",
            "rules": {},
            "refusals": (),
            "refusal_count": 0,
            "notes": (),
            "seconds": 0.0123,
            **more,
        }
        return StepReport(
            spelling=spelling,
            status=status,
            rewrites=rewrites,
            nodes_before=nodes[0],
            nodes_after=nodes[1],
            joules_before=energy[0],
            joules_after=energy[1],
            **values,
        )

    return (
        step("upgrade-opset", "unchanged", 0, (66, 66), (1.15e-3, 1.15e-3), notes=("already at opset 19",)),
        step(
            "fold-constants",
            "applied",
            21,
            (66, 45),
            (1.15e-3, 1.1e-3),
            rules={"fold": 19, "initializer": 2},
            deviation=0.0,
        ),
        step(
            "fuse-affine",
            "applied",
            3,
            (45, 40),
            (1.1e-3, 9.6e-4),
            rules={"fuse-batch-norm": 3},
            refusals=refused,
            refusal_count=14,
            deviation=3.1e-7,
        ),
        step(
            "fuse-gemm",
            "rolled back",
            2,
            (40, 40),
            (9.6e-4, 9.6e-4),
            reason="output 'y' deviates by 0.3, allowed is 1e-05",
        ),
        step(
            "prune-magnitude{sparsity=0.5}",
            "applied",
            3,
            (40, 40),
            (9.6e-4, 9.6e-4),
            fidelity="lossy",
            notes=("zeros save no energy on cpu", "3 tensors"),
        ),
        step("calibrate", "applied", 0, (40, 40), (9.6e-4, 9.6e-4)),
        step("quantize", "applied", 12, (40, 31), (9.6e-4, 4.49e-4), fidelity="lossy", rules={"quantize-conv": 3}),
        step(
            "quantize{only=Conv}",
            "dropped",
            9,
            (40, 37),
            (9.6e-4, 5e-4),
            fidelity="lossy",
            reason="INT8 everywhere is faster: 1.51x against 1.20x",
        ),
    )


def decisions() -> tuple[Decision, ...]:
    return (
        Decision("pruning", True, True, "ordered: sparsity 0.5; zeros save storage when compressed, no energy and no time on cpu"),
        Decision("INT8", True, False, "runs at 1.47x (1.43 to 1.50) the speed of float", 1.47, 1.43, 1.5, 0.0014),
        Decision("INT8 of convolutions only", False, False, "slower than INT8 everywhere", 1.2, 1.15, 1.26, 0.0011),
    )
