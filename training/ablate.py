"""Repeats a short run with one choice of the recipe changed at a time, and shows what each change costs.

    python -m training.ablate results.json [--only NAME...] [--size 64] [--images 24000] [--init FILE.safetensors]
        [--data FOLDER] [--seeds 1 2 3]

The base run and each change begin from the same weights (random without `--init`) and see the same crops, unless weights,
crops or seed are what is changed. With `--data` the recipe has real people, captured poses, real cloth and avatars, each of
them a choice, and the runs are also evaluated on the held-out people. `results.json` keeps finished runs, so that an
interrupted call continues; the table is printed from it. With several `--seeds` every run is made with each of them. A change
is compared with the base of the same seed; the table shows the mean and the largest deviation of a seed from it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from training.dataset import Crops, Renderer
from training.evaluate import SETS, evaluate, held_out, predict
from training.plan import FROM_DATA, Plan
from training.real_crops import HeldOutPeople, limb_score, read_crops
from training.stream import PoseChunks, Stream
from training.train import Trainer

BASE = "base"


class KeptChunks(PoseChunks):
    """Renders crops once, however many runs train on them: those of a seed's first run, kept in the CPU's memory."""

    _first: ClassVar[tuple | None] = None
    _kept: ClassVar[dict[tuple, tuple[Tensor, Tensor]]] = {}

    def render(self, plan: Plan, number: int) -> tuple[Tensor, Tensor]:
        """A chunk's images and joints, as in `PoseChunks`."""
        run = (plan.seed, plan.size, plan.chunk, plan.reuse, *plan.shares().values())
        if KeptChunks._first is None or KeptChunks._first[0] != plan.seed:
            KeptChunks._first = run
            self._kept.clear()
        if run != self._first:
            return super().render(plan, number)
        key = (number, plan.hardest(number))
        if key not in self._kept:
            images, joints = super().render(plan, number)
            self._kept[key] = images.cpu(), joints.cpu()
        return self._kept[key]


class Base(Trainer):
    """The recipe unchanged."""

    chunks = KeptChunks


class Unmirrored(Base):
    """No picture is mirrored."""

    def mirrored(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Both unchanged."""
        return images, labels


class PlainBranches(Base):
    """Residual branches begin with Kaiming initialisation, like all other layers, not at zero."""

    def new_network(self, init: Path | None) -> nn.Module:
        """The network of a new run."""
        network, generator = super().new_network(init), torch.Generator().manual_seed(self.plan.seed + 1)
        for name, module in network.named_modules():
            if name.endswith("pwconv2"):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        return network


class FullPrecision(Base):
    """FP32 in place of BF16."""

    bfloat16 = False


class OneError(Base):
    """The mean absolute error alone."""

    weighting: ClassVar[Mapping[str, float]] = {"entropy": 0.0}


class Entropy(Base):
    """The marginals' cross-entropy alone."""

    weighting: ClassVar[Mapping[str, float]] = {"l1": 0.0}


class Narrow(Base):
    """Target marginals half as wide."""

    weighting: ClassVar[Mapping[str, float]] = {"width": 1 / 32}


class Broad(Base):
    """Target marginals twice as wide."""

    weighting: ClassVar[Mapping[str, float]] = {"width": 1 / 8}


@dataclass(frozen=True)
class Choice:
    """One change of the recipe: another trainer, other numbers of the plan, or both.

    Some apply only to runs from random weights, some only to runs with a data folder.
    """

    trainer: type[Base] = Base
    plan: dict[str, Any] = field(default_factory=dict)
    from_random: bool = False
    of_data: bool = False


CHOICES = {
    BASE: Choice(),
    "rate 1e-3": Choice(plan={"rate": 1e-3}),
    "rate 4e-3": Choice(plan={"rate": 4e-3}),
    "batch 8": Choice(plan={"batch": 8}),
    "batch 32": Choice(plan={"batch": 32}),
    "no mirrored pictures": Choice(Unmirrored),
    "mean absolute error alone": Choice(OneError),
    "cross-entropy alone": Choice(Entropy),
    "target half as wide": Choice(Narrow),
    "target twice as wide": Choice(Broad),
    "residual branches not at zero": Choice(PlainBranches, from_random=True),
    "no weight decay": Choice(plan={"decay": 0.0}),
    "weight decay 0.1": Choice(plan={"decay": 0.1}),
    "gradient not clipped": Choice(plan={"clip": 1e9}),
    "each crop once": Choice(plan={"reuse": 1.0}),
    "each crop eight times": Choice(plan={"reuse": 8.0}),
    "hard crops from the start": Choice(plan={"first_difficulty": 0.95}, from_random=True),
    "easy crops only": Choice(plan={"first_difficulty": 0.12, "last_difficulty": 0.12}),
    "no real pictures": Choice(plan={"pictures": 0.0}),
    "no wide poses": Choice(plan={"wide": 0.0}),
    "nobody far off": Choice(plan={"far": 0.0}),
    "no coats": Choice(plan={"coats": 0.0}),
    "nobody bare": Choice(plan={"bare": 0.0}),
    "no clutter": Choice(plan={"clutter": 0.0}),
    "no turned pictures": Choice(plan={"turned": 0.0}),
    "colours as rendered": Choice(plan={"recoloured": 0.0}),
    "FP32": Choice(FullPrecision),
    "no real people": Choice(plan={"real": 0.0}, of_data=True),
    "a quarter real people": Choice(plan={"real": 0.25}, of_data=True),
    "three quarters real people": Choice(plan={"real": 0.75}, of_data=True),
    "no motion capture": Choice(plan={"mocap": 0.0}, of_data=True),
    "only motion capture": Choice(plan={"mocap": 1.0}, of_data=True),
    "no real cloth": Choice(plan={"cloth": 0.0}, of_data=True),
    "no avatars": Choice(plan={"avatars": 0.0}, of_data=True),
}

PEOPLE = "people"
"""The score on the held-out people: the share of their limb joints that are wrong, %."""


def measure(
    choice: Choice,
    plan: Plan,
    device: torch.device,
    sets: dict[str, Crops],
    init: Path | None = None,
    data: Path | None = None,
    people: HeldOutPeople | None = None,
) -> dict[str, dict[str, float]]:
    """Train with one choice, and return the scores of the average and of the last weights: MPJPE (mm, true root depth) on each
    set, and `PEOPLE` if `people` are given.

    The number of images stays that of the plan, whatever the batch.
    """
    images = plan.steps * plan.batch
    changed = replace(plan, **choice.plan)
    changed = replace(changed, steps=images // changed.batch)
    trainer = choice.trainer(changed, device, init, data)
    with Stream(changed, device, kind=trainer.chunks, data=data) as stream:
        while trainer.step < changed.steps:
            trainer.update(stream)
    networks = {"average": trainer.average, "last": trainer.network}
    figures = {
        which: {name: round(score.mpjpe_mm, 1) for name, score in evaluate(network, sets).items()}
        for which, network in networks.items()
    }
    for which, network in networks.items() if people is not None else ():
        figures[which][PEOPLE] = round(100 - 100 * limb_score(predict(network, people.images.to(device)), people).right, 1)
    return figures


def table(results: dict[str, dict[str, dict[str, dict[str, float]]]]) -> str:
    """Markdown: the scores of the base, and what each change adds to them.

    `results` has the scores of each run by seed. With more than one seed each score is the mean, followed by the largest
    deviation of a seed from it.
    """
    runs = list(results.values())
    names = [*SETS, *([PEOPLE] if PEOPLE in runs[0][BASE]["average"] else [])]
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    rows = {(BASE, "average"): BASE, (BASE, "last"): "base, last weights in place of their average"}
    rows |= {(name, "average"): name for run in runs for name in run if name != BASE}
    for (name, which), title in rows.items():
        done = [run for run in runs if name in run]
        cells = []
        for figure in names:
            bases = [0.0 if title == BASE else run[BASE]["average"][figure] for run in done]
            added = [run[name][which][figure] - base for run, base in zip(done, bases, strict=True)]
            mean = sum(added) / len(added)
            farthest = max(abs(value - mean) for value in added)
            cells.append((f"{mean:.1f}" if title == BASE else f"{mean:+.1f}") + (f" ± {farthest:.1f}" if len(done) > 1 else ""))
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--only", nargs="+", choices=CHOICES, default=list(CHOICES), metavar="NAME", help="only these changes")
    parser.add_argument("--size", type=int, default=64, help="side of the crops, px")
    parser.add_argument("--images", type=int, default=24_000, help="crops that a run trains on")
    parser.add_argument("--init", type=Path, help="initial weights; the crops are then hard from the start")
    parser.add_argument("--data", type=Path, help="data folder with real people, captured poses, cloth and avatars")
    parser.add_argument("--held-out", type=int, default=256, help="crops in each held-out set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], metavar="N", help="seeds; every run is made with each")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    first = Plan.last_difficulty if arguments.init else Plan.first_difficulty
    shares = FROM_DATA | {"real": 0.5} if arguments.data else {}
    plan = Plan(size=arguments.size, steps=arguments.images // Plan.batch, first_difficulty=first, **shares)
    kept = json.loads(arguments.results.read_text(encoding="utf-8")) if arguments.results.exists() else {}
    init = sha256(arguments.init.read_bytes()).hexdigest()[:12] if arguments.init else None
    setting = {"plan": asdict(plan), "held_out": arguments.held_out, "init": init}
    if kept and kept["setting"] != setting:
        parser.error(
            f"expected results of this plan, count and first weights in {arguments.results}, found others: name another file"
        )
    results = kept.get("results", {})
    choices = {name: CHOICES[name] for name in arguments.only}
    wanted = [n for n, c in choices.items() if not (c.from_random and arguments.init) and (arguments.data or not c.of_data)]
    runs = [(str(seed), name) for seed in dict.fromkeys(arguments.seeds) for name in dict.fromkeys([BASE, *wanted])]
    missing = [(seed, name) for seed, name in runs if name not in results.get(seed, {})]
    if missing:
        renderer = Renderer(device, plan.size)
        sets = {name: held_out(name, arguments.held_out, renderer) for name in SETS}
        people = read_crops(arguments.data, plan.size)[1] if arguments.data else None
    for seed, name in missing:
        seeded = replace(plan, seed=int(seed))
        figures = measure(CHOICES[name], seeded, device, sets, arguments.init, arguments.data, people)
        results.setdefault(seed, {})[name] = figures
        print(f"seed {seed}, {name}: {figures}", flush=True)
        new = arguments.results.with_name(arguments.results.name + ".new")
        new.write_text(json.dumps({"setting": setting, "results": results}, indent=2) + "\n", encoding="utf-8")
        new.replace(arguments.results)
    print(table(results))


if __name__ == "__main__":
    main()
