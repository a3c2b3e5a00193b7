"""Everything that needs a GPU, measured by one command: tests, speed, exports, the guide's model, the demo's loop.

It runs from a checkout on any machine with a CUDA device, needs no network, and writes one Markdown page::

    python benchmarks/gpu.py --out runs/gpu --minutes 30

Each part is a command of its own with a share of the time. Called again with the same folder it takes up the parts that
are not done; ``--parts`` picks some. A part that fails, or runs past its share, is named on the page with the reason.
Every accelerated step is compiled first, 5 to 15 seconds each, and every part imports PyTorch anew: with less than a
minute a part, most do not come to their end.
``--device cpu --quick`` rehearses every part in minutes; the figures then say nothing.

Beside PyTorch and torchvision it needs the packages of ``setup.py``'s ``install_requires`` (of these lightning-fabric,
Gymnasium with Box2D and pygame-ce, stable-baselines3 and pydantic are what a machine for deep learning may lack), and
pytest with hypothesis and msgpack for the tests; for exports onnx, onnxscript and onnxruntime, and tensorrt where there
is one. ``wm_gym`` need not be installed: where it is not, the folders of the checkout are put together in ``--out``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
GUIDE_PSNR_DB = "26.5 to 28.5 dB"
GUIDE_SEQUENCES = "23.8 sequences/s (batch 16, RTX 3090)"
STOP_GRACE_S = 40.0
"""After the interrupt at the end of its time a part may save what it has."""


class Job(NamedTuple):
    """What all parts are told."""

    out: Path
    device: str
    quick: bool


class Part(NamedTuple):
    """One part of the page.

    Attributes:
        title: Its heading.
        weight: Its share of the minutes, beside those of the other parts.
        commands: Makes its commands, one after the other, from the job; they run in ``--out``.
        page: Makes its Markdown from the job and what the last command printed.
        may_stop: Whether what it has at the end of its time counts as a result.
    """

    title: str
    weight: float
    commands: Callable[[Job], list[list[str]]]
    page: Callable[[Job, str], str]
    may_stop: bool = False


def _python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def _wm_gym(*arguments: str) -> list[str]:
    return _python("-m", "wm_gym", *arguments)


def _fenced(_: Job, printed: str) -> str:
    return "```\n" + "\n".join(printed.strip().splitlines()[-40:]) + "\n```"


def _bench(part: str, *, configs: str | None = None, num_envs: str = "1,256,4096,65536") -> Any:
    """Commands and page of one part of ``wm-gym bench``."""
    name = f"{part}-{configs.replace(',', '-')}" if configs else part

    def commands(job: Job) -> list[list[str]]:
        picked = "debug" if job.quick else configs
        command = _wm_gym("bench", "--parts", part, "--device", job.device, "--out", f"bench/{name}")
        command += ["--seconds", "0.05" if job.quick else "0.3", "--num-envs", "1,16" if job.quick else num_envs]
        return [command + (["--configs", picked] if picked else []) + ["--limit", "4", "--quiet"]]

    def page(job: Job, _: str) -> str:
        return (job.out / "bench" / name / "bench.md").read_text(encoding="utf-8").replace("## ", "### ", 1).strip()

    return commands, page


def _test_commands(_: Job) -> list[list[str]]:
    # To collect the whole suite takes longer than the few tests do.
    marked = [file for file in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in file.read_text(encoding="utf-8")]
    return [_python("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *map(str, sorted(marked)))]


def _export_commands(job: Job) -> list[list[str]]:
    formats = ["torchscript"]
    if _can_import("onnx, onnxscript, onnxruntime"):
        formats.append("onnx")
        if job.device.startswith("cuda") and _can_import("tensorrt"):
            formats.append("tensorrt")
    command = _wm_gym("export", "--agent", "bundled", "--out", "export", "--device", job.device, "--quiet")
    command += ["--batch", "1", *([] if job.quick else ["--batch", "256"]), "--repeats", "10" if job.quick else "100"]
    return [command + [word for name in formats for word in ("--format", name)]]


def _can_import(packages: str) -> bool:
    return subprocess.run(_python("-c", f"import {packages}"), capture_output=True, check=False).returncode == 0


def _base_commands(job: Job) -> list[list[str]]:
    workers = max(1, (os.cpu_count() or 2) - 2)
    size, episodes, length = ("64", "3", "30") if job.quick else ("256", str(2 * workers), "300")
    config, steps, every = ("debug", "4", "2") if job.quick else ("base", "100000", "100")
    collect = _wm_gym("collect", "--env", "car-racing", "--frame-size", size, "--out", "base/data")
    collect += ["--episodes", episodes, "--max-episode-steps", length, "--workers", str(workers), "--quiet"]
    train = _wm_gym("train-model", "--data", "base/data", "--config", config, "--out", "base/model", "--quiet")
    for change in (
        "loss.perceptual=0",  # its weights are downloaded, and there may be no network
        f"training.steps={steps}",
        f"training.validate_every={every}",
        "training.warmup_steps=100",
        "training.accumulation=1",
    ):
        train += ["--set", change]
    return [collect, [*train, "--device", job.device]]


def _base_page(job: Job, _: str) -> str:
    """Quality of held-out predictions against minutes of training."""
    rows = [
        json.loads(line) for line in (job.out / "base/model/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    speed = {row["update"]: row["updates_per_s"] for row in rows if row["kind"] == "train"}
    lines = [
        "| minutes | updates | reconstruction (dB) | 1 step | 5 steps | 10 steps | last frame repeated, 10 steps |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    measured = [row for row in rows if row["kind"] == "validation"]
    if not measured:
        raise ValueError("training did not come to its first validation")
    for row in measured:
        steps = [row["psnr"].get(str(ahead)) for ahead in (1, 5, 10)] + [row["psnr_copy"].get("10")]
        shown = ["-" if value is None else f"{value:.1f}" for value in (row["psnr_reconstruction"], *steps)]
        minutes = row["update"] / speed[row["update"]] / 60
        lines.append(f"| {minutes:.2f} | {row['update']:,} | " + " | ".join(shown) + " |")
    last = max(speed)
    lines += [
        "",
        f"Batches of 16 clips of ten frames, no LPIPS; {16 * speed[last]:.1f} clips/s with loading and validation.",
        "PSNR over held-out clips of CarRacing.",
        f"The guide names {GUIDE_PSNR_DB} and {GUIDE_SEQUENCES}.",
    ]
    return "\n".join(lines)


def _demo_commands(job: Job) -> list[list[str]]:
    workers = max(1, (os.cpu_count() or 2) - 2)
    command = _wm_gym("demo", "--out", "demo", "--device", job.device, "--workers", str(workers))
    return [[*command, "--quiet", *(["--quick"] if job.quick else [])]]


_CONFIGS = "tiny,compact,base,large"

PARTS: dict[str, Part] = {
    "base": Part("`base` at 256x256: minutes against PSNR", 9, _base_commands, _base_page, may_stop=True),
    "sequences": Part("Sequences and updates", 4, *_bench("sequences", configs=_CONFIGS)),
    "environments": Part("Dreams as environments", 5, *_bench("environments")),
    "ppo": Part("PPO in the dream", 3, *_bench("ppo")),
    "tests": Part("The test suite's GPU marks", 5, _test_commands, _fenced),
    "components": Part("Components", 3, *_bench("components", configs=_CONFIGS)),
    "peak": Part("The model alone", 5, *_bench("peak", configs="tiny", num_envs="1,256,4096,65536")),
    "peak-base": Part("The model alone, `base`", 4, *_bench("peak", configs="base", num_envs="256,65536")),
    "exports": Part("Exports", 1, _export_commands, _fenced),
    "demo": Part("The demo's loop", 25, _demo_commands, _fenced),
}


def main() -> int:
    """Run the parts that are not done, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the parts and of gpu.md")
    parser.add_argument("--minutes", type=float, default=30.0, help="time for the parts that are run (default: 30)")
    parser.add_argument("--parts", metavar="PART,PART", help=f"some of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:1, or cpu for a rehearsal")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes: shows that every part works")
    arguments = parser.parse_args()
    picked = list(PARTS) if arguments.parts is None else arguments.parts.split(",")
    unknown = [name for name in picked if name not in PARTS]
    if unknown:
        parser.error(f"--parts knows no {unknown[0]!r}; use {', '.join(PARTS)}")
    # Started in the background it ignores interrupts, and its parts would, too, which must be stopped in time.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    job = Job(arguments.out.resolve(), arguments.device, arguments.quick)
    (job.out / "parts").mkdir(parents=True, exist_ok=True)
    environment = _environment(job)
    waiting = [name for name in picked if _result(job, name).get("status") != "done"]
    ends = time.monotonic() + 60 * arguments.minutes
    for position, name in enumerate(waiting):
        left = ends - time.monotonic()
        share = PARTS[name].weight / sum(PARTS[other].weight for other in waiting[position:])
        print(f"{name}: at most {left * share:.0f} s", flush=True)
        found = _run(job, PARTS[name], left * share, environment)
        print(f"{name}: {found['status']} after {found['seconds']:.0f} s {found['reason']}", flush=True)
        (job.out / "parts" / f"{name}.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
        (job.out / "gpu.md").write_text(_page(job, environment), encoding="utf-8")
    print(job.out / "gpu.md")
    return 0 if all(_result(job, name).get("status") == "done" for name in picked) else 1


def _environment(job: Job) -> dict[str, str]:
    """The parts' environment variables, in which ``wm_gym`` can be imported."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "MPLBACKEND": "Agg"}
    if importlib.util.find_spec("wm_gym") is not None and importlib.util.find_spec("wm_gym.envs") is not None:
        return environment
    together = job.out / "package"
    shutil.rmtree(together, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "wm_gym", together / "wm_gym", ignore=ignored)
    for folder in ("envs", "agents", "data_collection"):
        shutil.copytree(ROOT / folder, together / "wm_gym" / folder, ignore=ignored)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(together), os.environ.get("PYTHONPATH"))))
    return environment


def _run(job: Job, part: Part, seconds: float, environment: dict[str, str]) -> dict[str, Any]:
    """Run a part's commands within its time."""
    started = time.monotonic()
    printed, reason = "", ""
    status = "done"
    for command in part.commands(job):
        left = seconds - (time.monotonic() - started)
        code, printed = _call(command, left, job.out, environment)
        if code is None and part.may_stop:
            reason = f"(stopped after its {seconds:.0f} s)"
        elif code != 0:
            status = "failed"
            last = (printed.strip().splitlines() or ["no output"])[-1]
            reason = f"ran past its {seconds:.0f} s" if code is None else f"exit code {code}: {last}"
            break
    page = ""
    if status == "done":
        try:
            page = part.page(job, printed)
        except (OSError, ValueError, KeyError) as error:
            status, reason = "failed", f"no figures: {error!r}"
    return {
        "status": status,
        "reason": reason,
        "page": page,
        "seconds": time.monotonic() - started,
        "log": printed[-20_000:],
    }


def _call(command: Sequence[str], seconds: float, folder: Path, environment: dict[str, str]) -> tuple[int | None, str]:
    """Exit code, ``None`` where the time was over, and what was printed."""
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            printed = process.communicate(timeout=max(1.0, seconds))[0]
            return process.returncode, printed or ""
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        try:
            printed = process.communicate(timeout=STOP_GRACE_S)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            printed = process.communicate()[0]
    # Interrupted, but it came to its own end within the grace.
    return (0 if process.returncode == 0 else None), printed or ""


def _result(job: Job, name: str) -> dict[str, Any]:
    file = job.out / "parts" / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _page(job: Job, environment: dict[str, str]) -> str:
    """All parts so far, on one page."""
    lines = ["# Measured on a GPU" if job.device.startswith("cuda") else "# A rehearsal without a GPU", ""]
    lines += [
        f"{datetime.now(timezone.utc):%Y-%m-%d}, `python benchmarks/gpu.py`.",
        "Products in fp32 are of full precision; convolutions round to TF32, as is PyTorch's default.",
        "",
        "```",
        *_machine(environment),
        "```",
    ]
    for name, part in PARTS.items():
        found = _result(job, name)
        lines += ["", f"## {part.title}", ""]
        if not found:
            lines.append("Not run.")
        elif found["status"] != "done":
            lines.append(f"Did not come to an end: {found['reason']}.")
        else:
            lines += [found["page"], "", f"{found['seconds']:.0f} s {found['reason']}".rstrip() + "."]
    return "\n".join(lines) + "\n"


def _machine(environment: dict[str, str]) -> list[str]:
    """Device, driver and versions, as the tools on the machine tell them."""
    told = "import torch,sys;print('Python',sys.version.split()[0],'torch',torch.__version__,'CUDA',torch.version.cuda)"
    commands = [[sys.executable, "-c", told]]
    if shutil.which("nvidia-smi"):
        commands.append(["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"])
    found = [f"{os.cpu_count()} cores"]
    for command in commands:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        found.append(done.stdout.strip())
    return found


if __name__ == "__main__":
    raise SystemExit(main())
