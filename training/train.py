"""Trains a variant on rendered people, in slices that can be interrupted at any moment.

    python -m training.train RUN --variant XS --steps 200000 --minutes 55 [--init FILE.safetensors]
    python -m training.train RUN --minutes 55          (continues where the last slice ended)
    python -m training.train RUN --minutes 9 --fit     (measures the speed and plans a complete run in one slice)

RUN is a folder: `state.json` and `state-*.safetensors` (at most 16 MiB each) are all that a slice needs to continue exactly as
if it had never stopped, on the same device with the same number of threads. `log.jsonl` is the log and `plot.svg` its plot.
`last.safetensors` and `best.safetensors` are the averaged weights in FP16, for `convnextpose verify` and `training.ship`.
"""

from __future__ import annotations

import argparse
import copy
import json
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor, nn

from convnextpose.network import PoseNetwork
from convnextpose.variants import Variant
from training import state
from training.dataset import Renderer, mirror, recolour, turn
from training.depthwise import quicken
from training.evaluate import SETS, evaluate, held_out, network_input, predict, rounded
from training.initial import initialise, load_grown
from training.losses import pose_loss
from training.mixed import mixed, moved
from training.plan import Plan
from training.plot import draw, read
from training.real_crops import RealCrops, RealPictures, limb_score, read_crops
from training.stream import Chunks, PoseChunks, Stream

DATA_NEEDED = "shares of real people, motion capture, real cloth or avatars"

TRIAL_SHARE = 0.06
"""Share of a slice in which `--fit` measures the speed, in the run's first steps: half a minute of nine."""
RESERVED_SHARE = 0.08
"""Share of the rest that `--fit` leaves for evaluation, saving and a speed that varies."""

WARM_UP, TRIAL_STEPS = 4, 16
"""Steps before a measurement and, at the end of which a GPU is waited for, in it."""

PROCESSES = 5
"""Processes that make a run's real crops for a GPU: a crop takes 2 ms, a frame 5 ms."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter."""

TURN_RAD, ZOOM = 0.4, 0.1
"""Standard deviations of a crop's rotation angle, limited to twice that, and of the logarithm of its zoom."""

GAMMA, CAST = 0.35, 0.15
"""Standard deviations of the logarithm of a tone curve's exponent: the part that the channels share, and the part of each
channel."""


class Trainer:
    """One run: its network, the moving average of its weights and the optimiser, at a given step."""

    chunks: type[Chunks] = PoseChunks
    unused: frozenset[str] = frozenset()
    """Numbers of the plan that this kind of training does not use; shares among them are 0."""
    weighting: Mapping[str, float] = {}
    """Arguments of `pose_loss` that replace its default weights."""
    bfloat16: bool = True
    """Whether the network computes in BF16."""
    memory_format: torch.memory_format = torch.channels_last
    """The order of the network's tensors in memory; `choose_format` measures which is quicker on a GPU."""

    def __init__(self, plan: Plan, device: torch.device, init: Path | None = None, data: Path | None = None) -> None:
        """Begin with random weights or those of `init`; `data` is the folder with real people."""
        plan = replace(plan, **{name: 0.0 for name in self.unused if isinstance(getattr(plan, name), float)})
        self.plan, self.device, self.step = plan, device, 0
        self.best: float | None = None
        self._sets: dict = {}
        if plan.needs_data and data is None:
            raise ValueError(f"expected a data folder for {DATA_NEEDED}, received none: name one")
        self.data = data
        self._real: RealCrops | None = None
        self._held_out: Any = None
        if plan.real and data is not None:
            source, self._held_out = self.read_real(data)
            self._real = RealCrops(source, plan.real_crops, plan.size, plan.seed, PROCESSES if device.type == "cuda" else 0)
        network = self.new_network(init)
        if device.type == "cpu":
            quicken(network)
        self.network = network.to(device, memory_format=self.memory_format).train()
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        weights = [p for p in self.network.parameters() if p.ndim > 1]
        others = [p for p in self.network.parameters() if p.ndim <= 1]
        groups = [{"params": weights, "weight_decay": plan.decay}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=plan.rate, fused=True)

    def read_real(self, data: Path) -> tuple[RealPictures, Any]:
        """The source of a batch's real pictures, and the held-out ones for `judge`."""
        return read_crops(data, self.plan.size)

    def new_network(self, init: Path | None) -> nn.Module:
        """The network of a new run."""
        network = PoseNetwork(Variant[self.plan.variant])
        initialise(network, network.head.final_layer, self.plan.seed)
        if init is not None:
            load_grown(network, init, self.plan.seed)
        return network

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of normalised images, and the mean absolute error in it."""
        with mixed(self.device, wanted=self.bfloat16):
            maps = self.network.head(self.network.backbone(images.contiguous(memory_format=self.memory_format)))
        return pose_loss(maps, labels[..., :3], self.plan.size, labels[..., 3:], **self.weighting)

    def weighted(self, labels: Tensor) -> Tensor:
        """Labels [N, 18, 6] of rendered people from their joints: all coordinates have the same weight."""
        return torch.cat([labels, torch.ones_like(labels)], -1)

    def mirrored(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images [N, S, S, 3] and labels of the mirrored pictures."""
        return mirror(images, labels)

    def judge(self, count: int) -> tuple[dict[str, dict], float]:
        """Scores of the average on held-out sets of `count` pictures, and one figure that is lower for better weights."""
        if not self._sets:
            renderer = Renderer(self.device, self.plan.size)
            self._sets = {name: held_out(name, count, renderer) for name in SETS}
        scores = evaluate(self.average, self._sets)
        figures: dict[str, dict] = {name: rounded(score) for name, score in scores.items()}
        if self._held_out is not None:
            real = limb_score(predict(self.average, self._held_out.images.to(self.device)), self._held_out)
            figures["people"] = {name: round(number, 4) for name, number in asdict(real).items()}
        return figures, scores["easy"].mpjpe_mm + scores["hard"].mpjpe_mm

    def update(self, stream: Stream) -> tuple[Tensor, Tensor]:
        """One step; the loss and the mean absolute error, still on the device."""
        plan = self.plan
        stream.advance(plan.chunks_before(self.step))
        images, labels = self._batch(stream)
        rate = plan.rate_at(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss, error = self.loss(images, labels)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), plan.clip)
        self.optimiser.step()
        self._follow()
        self.step += 1
        return loss.detach(), error.detach()

    def choose_format(self, stream: Stream) -> None:
        """Use the memory format in which the network is trained more quickly: on a GPU that depends on its libraries."""
        stream.advance(self.plan.chunks_before(self.step))
        images, labels = self._batch(stream)
        statistics = [buffer.clone() for buffer in self.network.buffers()]
        seconds = {}
        for memory_format in (torch.channels_last, torch.contiguous_format):
            self._use(memory_format)
            for repetition in range(WARM_UP + TRIAL_STEPS):
                loss, _ = self.loss(images, labels)
                loss.backward()
                if repetition in (WARM_UP - 1, WARM_UP + TRIAL_STEPS - 1):
                    loss.item()  # waits for the device
                    seconds[memory_format] = time.monotonic() - seconds.get(memory_format, 0.0)
        for buffer, before in zip(self.network.buffers(), statistics, strict=True):
            buffer.copy_(before)
        self._use(min(seconds, key=seconds.__getitem__))
        print({str(name): round(1000 * spent / TRIAL_STEPS, 1) for name, spent in seconds.items()}, "ms a step", flush=True)

    def _use(self, memory_format: torch.memory_format) -> None:
        self.memory_format = memory_format
        self.optimiser.zero_grad(set_to_none=True)
        for network in (self.network, self.average):
            network.to(memory_format=memory_format)
        for parameter, moments in self.optimiser.state.items():
            for name in MOMENTS:
                moments[name] = torch.empty_like(parameter).copy_(moments[name])

    def _batch(self, stream: Stream) -> tuple[Tensor, Tensor]:
        """Normalised images and labels drawn from the stream and from the real people, half of them mirrored, some rotated,
        some in other colours, each a little brighter or darker."""
        plan = self.plan
        generator = torch.Generator().manual_seed(plan.seed * 2**22 + self.step)
        rendered = plan.batch - plan.real_crops
        chosen = moved(torch.randint(0, len(stream), (rendered,), generator=generator), self.device)
        flipped = moved(torch.rand(plan.batch, generator=generator) < 0.5, self.device)
        gain = moved(0.85 + 0.3 * torch.rand(plan.batch, 1, 1, 1, generator=generator), self.device)
        tint = moved(25 * (torch.rand(plan.batch, 1, 1, 3, generator=generator) - 0.5), self.device)
        images, labels = stream.images[chosen], self.weighted(stream.labels[chosen])
        if self._real is not None:
            real = self._real.batch(self.step)
            images, labels = (torch.cat([r, moved(c, self.device)]) for r, c in zip((images, labels), real, strict=True))
        mirrored_images, mirrored_labels = self.mirrored(images, labels)
        images = torch.where(flipped[:, None, None, None], mirrored_images, images).float()
        labels = torch.where(flipped[:, None, None], mirrored_labels, labels)
        if plan.recoloured:
            some, toned = (torch.rand(plan.batch, 1, 1, 1, generator=generator) < plan.recoloured for _ in range(2))
            left = torch.where(some, (1.6 * torch.rand(plan.batch, 1, 1, 1, generator=generator) - 0.6).clamp_min(0), 1.0)
            curve = torch.randn(plan.batch, 1, 1, 4, generator=generator) * toned
            gamma = (GAMMA * curve[..., :1] + CAST * curve[..., 1:]).exp()
            images = recolour(images, moved(left, self.device), moved(gamma, self.device))
        if plan.turned:
            some = torch.rand(plan.batch, generator=generator) < plan.turned
            angles = TURN_RAD * torch.randn(plan.batch, generator=generator).clamp(-2, 2) * some
            zoom = (ZOOM * torch.randn(plan.batch, generator=generator).clamp(-2, 2) * some).exp()
            images, labels = turn(images, labels, moved(angles, self.device), moved(zoom, self.device))
        return network_input((images * gain + tint).clamp(0, 255)), labels

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average toward the network, quickly at first."""
        keep = min(self.plan.average, (1 + self.step) / (10 + self.step))
        pairs = zip(self.average.state_dict().values(), self.network.state_dict().values(), strict=True)
        moving = [(a, n) for a, n in pairs if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in moving], [n for _, n in moving], 1 - keep)

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights, FP16."""
        tensors = self.average.state_dict().items()
        return {k: (t.half() if t.is_floating_point() else t).cpu().contiguous() for k, t in tensors}

    def save(self, folder: Path) -> None:
        """Write everything that `restore` needs, and the averaged weights."""
        tensors = {f"network.{k}": t for k, t in self.network.state_dict().items()}
        tensors |= {f"average.{k}": t for k, t in self.average.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            for moment in MOMENTS:
                if parameter in self.optimiser.state:
                    tensors[f"{moment}.{name}"] = self.optimiser.state[parameter][moment]
        facts = {"step": self.step, "best": self.best, "people": self.people, "plan": asdict(self.plan)}
        state.save(folder, tensors, facts, f"{self.step:08d}")
        state.write_tensors(folder / "last.safetensors", self.weights())

    @property
    def people(self) -> str | None:
        """Shows which real people the run learns from."""
        return None if self._real is None else self._real.source.fingerprint

    def restore(self, folder: Path) -> None:
        """Restore the state in a folder.

        Raises:
            ValueError: it belongs to a run that learns from other real people.
        """
        facts = state.load_facts(folder)
        assert facts is not None
        if facts.get("people") != self.people:
            raise ValueError(
                f"expected the real people that the run in {folder} began with, received others: name its data folder"
            )
        tensors = state.load_tensors(folder, self.device)
        self.step, self.best = facts["step"], facts["best"]
        for prefix, network in (("network.", self.network), ("average.", self.average)):
            network.load_state_dict({k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})
        for name, parameter in self.network.named_parameters():
            if f"exp_avg.{name}" in tensors:
                moments = {m: torch.empty_like(parameter).copy_(tensors[f"{m}.{name}"]) for m in MOMENTS}
                steps = torch.tensor(float(self.step), device=self.device)
                self.optimiser.state[parameter] = {"step": steps, **{m: t.detach() for m, t in moments.items()}}


def run(
    folder: Path,
    plan: Plan,
    device: torch.device,
    *,
    seconds: float = float("inf"),
    steps: int | None = None,
    init: Path | None = None,
    data: Path | None = None,
    workers: int = 0,
    evaluate_s: float = 900.0,
    save_s: float = 240.0,
    held_out_count: int = 128,
    stop: Callable[[], bool] = lambda: False,
    kind: type[Trainer] = Trainer,
    fit: bool = False,
) -> Trainer:
    """Train for a slice: until `seconds` have passed, `steps` more are done, `stop()` returns true, or the plan is complete.

    If the folder has a run, it continues; `init` and `fit` apply only to a new one. With `fit` the plan's number of steps is
    chosen so that it is complete when the slice ends. With `held_out_count` 0 nothing is evaluated.
    """
    began = time.monotonic()
    trainer = kind(plan, device, init, data)
    if state.load_facts(folder) is not None:
        trainer.restore(folder)
    folder.mkdir(parents=True, exist_ok=True)
    log_path = folder / "log.jsonl"
    _forget_after(log_path, trainer.step)
    last = plan.steps if steps is None else min(plan.steps, trainer.step + steps)

    def log(**facts: object) -> None:
        line = json.dumps({"step": trainer.step, "images": trainer.step * plan.batch, **facts})
        print(line, flush=True)
        with log_path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def judge() -> None:
        if not held_out_count:
            return
        figures, figure = trainer.judge(held_out_count)
        log(**figures)
        if trainer.best is None or figure < trainer.best:
            trainer.best = figure
            state.write_tensors(folder / "best.safetensors", trainer.weights())
        if (log_so_far := read(log_path)).series:
            (folder / "plot.svg").write_text(draw([log_so_far]), encoding="utf-8")

    with Stream(plan, device, workers, trainer.chunks, data) as stream:
        if device.type == "cuda":
            trainer.choose_format(stream)
        if fit and trainer.step == 0:
            trainer.plan = stream.plan = plan = fitted(trainer, stream, began, seconds)
            last = plan.steps
            print(f"{last} steps fit into {seconds / 60:.3g} minutes", flush=True)
        saved = judged = reported = time.monotonic()
        since, total = trainer.step, torch.zeros(2, device=device)
        while trainer.step < last and time.monotonic() - began < seconds and not stop():
            total += torch.stack(trainer.update(stream))
            now = time.monotonic()
            if now - reported > 60:
                count = trainer.step - since
                loss, error = (total / count).tolist()
                figures = {"loss": round(loss, 4), "error": round(error, 5), "rate": round(plan.rate_at(trainer.step), 7)}
                speed = round(count * plan.batch / (now - reported), 1)
                log(
                    **figures,
                    rendered=stream.rendered * plan.chunk,
                    hardest=round(plan.hardest(stream.rendered), 3),
                    speed=speed,
                )
                since, reported = trainer.step, now
                total.zero_()
            if now - judged > evaluate_s:
                judge()
                judged = time.monotonic()
            if now - saved > save_s:
                trainer.save(folder)
                saved = time.monotonic()
    trainer.save(folder)
    judge()
    trainer.save(folder)
    return trainer


def fitted(trainer: Trainer, stream: Stream, began: float, seconds: float) -> Plan:
    """The plan with as many steps as fit into a slice of `seconds` that began at `began`, both by the monotonic clock.

    So the learning rate has fallen to its end when the slice ends, however fast the machine is. The speed is measured in the
    first steps of the run itself, for TRIAL_SHARE of the slice. RESERVED_SHARE of the rest is left for evaluation and saving.
    The chunks of these steps are rendered by the plan before.
    """
    loss, _ = trainer.update(stream)  # renders the first chunks, and cuDNN and the allocator warm up
    loss.item()
    first, ready = trainer.step, time.monotonic()
    now = ready
    while now - ready < TRIAL_SHARE * seconds:
        loss, _ = trainer.update(stream)
        if trainer.step % TRIAL_STEPS == 0:
            loss.item()  # waits for the device
        now = time.monotonic()
    loss.item()
    now = time.monotonic()
    speed = (trainer.step - first) / (now - ready)
    left = (1 - RESERVED_SHARE) * (seconds - (now - began))
    return replace(trainer.plan, steps=trainer.step + max(0, int(left * speed)))


def _forget_after(log_path: Path, step: int) -> None:
    """Drop lines for steps after the last save of an interrupted slice: these steps are about to be repeated."""
    if log_path.exists():
        lines = [line for line in log_path.read_text(encoding="utf-8").splitlines() if json.loads(line)["step"] <= step]
        log_path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def main(kind: type[Trainer] = Trainer, description: str | None = __doc__) -> None:
    """Read the command line; the plan's numbers are options of the same name."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="length of this slice")
    parser.add_argument("--fit", action="store_true", help="choose --steps of a new run so that it is complete after --minutes")
    parser.add_argument("--init", type=Path, help="initial weights of a new run")
    parser.add_argument("--data", type=Path, help="folder with real people and motion capture, which README.md describes")
    parser.add_argument("--workers", type=int, default=0, help="processes that render on the CPU; 0 renders on the device")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads for the training itself")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--evaluate-minutes", type=float, default=15.0)
    parser.add_argument("--held-out", type=int, default=128, help="crops in each held-out set")
    types = {"str": str, "int": int, "float": float}
    for field in (f for f in fields(Plan) if f.name not in kind.unused):
        choices = [v.name for v in Variant] if field.name == "variant" else None
        option, convert = f"--{field.name.replace('_', '-')}", types[str(field.type)]
        parser.add_argument(option, type=convert, choices=choices, help=f"default {field.default}")
    arguments = parser.parse_args()
    given = {f.name: value for f in fields(Plan) if (value := getattr(arguments, f.name, None)) is not None}
    facts = state.load_facts(arguments.run)
    if facts and (missing := sorted({f.name for f in fields(Plan)} - facts["plan"].keys())):
        parser.error(
            f"expected a run of this version in {arguments.run}, found one without {', '.join(missing)}: "
            "begin a new one in another folder with --init last.safetensors"
        )
    if arguments.fit and (not 0 < arguments.minutes < float("inf") or "steps" in given):
        parser.error("expected --minutes above 0 and no --steps with --fit, which measures the speed to choose the steps")
    plan = Plan(**facts["plan"]) if facts else Plan(**given)
    if facts and replace(plan, **given) != plan:
        parser.error(f"the run in {arguments.run} has the plan {plan}: leave its options out, or name another folder")
    if plan.needs_data and arguments.data is None:
        parser.error(f"expected --data for {DATA_NEEDED}, received none: name the folder that holds them")
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    torch.backends.cudnn.benchmark = True
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stopped.append(number))
    run(
        arguments.run,
        plan,
        torch.device(arguments.device),
        seconds=arguments.minutes * 60,
        init=arguments.init,
        data=arguments.data,
        workers=arguments.workers,
        evaluate_s=arguments.evaluate_minutes * 60,
        held_out_count=arguments.held_out,
        stop=lambda: bool(stopped),
        kind=kind,
        fit=arguments.fit,
    )


if __name__ == "__main__":
    main()
