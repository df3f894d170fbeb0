"""Records of the paper's own plans, with made-up results and the costs of their real configurations.

AMPN's rows have found bits: 1 for fc2, 3 for proj, the budget for the rest. RobuQ's rows have distributions.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from shape_arrays import shape_arrays

from experiments.plan import load_plan
from robuq.config import BLOCK_ROLES, RunConfig, decision_name
from robuq.cost import average_bits, layer_costs, summarise
from robuq.record.collect import mean_act_bits
from robuq.record.run_record import RunRecord

QUALITY = ("bitnet_v2", "minmax", "baseline", "robuq_uniform", "robuq")  # from worst to best


def plan_records(plan: str, folder: Path, seeds: str = "0,1") -> list[RunRecord]:
    """All runs of a packaged plan; each has its record.json and samples under `folder`."""
    runs = load_plan(plan, [f"seeds={seeds}"]).runs
    return [_record(plan, run, place, folder) for place, run in enumerate(runs)]


def _record(plan: str, run: RunConfig, place: int, folder: Path) -> RunRecord:
    rng = np.random.default_rng([place, run.seed])
    bits = mean_act_bits(run)
    level = 0.09 if bits is None else 0.12 + 0.01 * (4 - bits) - 0.004 * _quality(run.variant)
    costs = layer_costs(run.model, run.precision, run.allocation)
    metrics = {
        "held_out_loss": level + 0.001 * run.seed + float(rng.normal(0, 1e-4)),
        "validation_loss": level,
        "fd_classifier": 600 * (level - 0.08) + float(rng.normal(0, 0.5)),
        "precision": 1.6 - 8 * level,
        "recall": 1.5 - 8 * level,
        "classifier_score": 17 - 80 * level + float(rng.normal(0, 0.05)),
        "bops": summarise(costs).bops,
        **({} if bits is None else {"average_bits_macs": average_bits(costs, "macs") or 0.0}),
    }
    record = RunRecord(
        plan=plan,
        key=run.key(),
        variant=run.variant,
        label=run.label,
        act_bits=bits,
        seed=run.seed,
        pretrain_seed=run.pretrain_seed,
        status="finished",
        protocol=f"{run.data.name:a<12}"[:12],
        dataset=run.data.name,
        config=run.model_dump(mode="json"),
        stages={"qat": "0" * 16},
        allocation=found_bits(run) if run.ampn else {},
        metrics=metrics,
        history=[{"step": float(s), "loss": level + 0.3 * float(np.exp(-s / 9))} for s in range(1, 40)],
        git={"commit": "c0ffee" + 34 * "0", "dirty": "false"},
        versions={"python": "3.11.2", "torch": "2.13.0"},
    )
    return _with_files(record, rng, folder)


def found_bits(run: RunConfig) -> dict[str, int]:
    budget = round(mean_act_bits(run) or 0)
    by_role = dict.fromkeys(BLOCK_ROLES, budget) | {"fc2": 1, "proj": 3}
    return {decision_name(i, role): by_role[role] for i in range(run.model.num_layers) for role in BLOCK_ROLES}


def _quality(variant: str) -> int:
    return QUALITY.index(variant) if variant in QUALITY else 0


def _with_files(record: RunRecord, rng: np.random.Generator, folder: Path) -> RunRecord:
    own = folder / record.plan / record.key
    own.mkdir(parents=True)
    (own / "record.json").write_text(json.dumps(record.model_dump(mode="json")))
    (own / "history.jsonl").write_text("\n".join(json.dumps(row) for row in record.history))
    images = rng.integers(0, 255, (10, 8, 8, 1)).astype(np.uint8)
    np.savez(own / "samples.npz", images=images, labels=np.arange(10))
    tokens = {f"fc2.{state}": rng.standard_normal((64, 32)).astype(np.float32) for state in ("raw", "rotated")}
    np.savez(own / "tokens.npz", allow_pickle=False, **tokens)  # type: ignore[arg-type]
    names = ["record.json", "history.jsonl", "samples.npz", "tokens.npz"]
    if record.variant == "robuq_uniform":
        np.savez(own / "distributions.npz", allow_pickle=False, **shape_arrays())  # type: ignore[arg-type]
        names.append("distributions.npz")
    return record.updated(artifacts={name: str(own / name) for name in names})
