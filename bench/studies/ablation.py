"""Which parts of the `improved` recipe help: variants trained for the same time, with one architecture and seed.

    python -m bench.studies.ablation --data phantoms --minutes 20 --output bench/results/ablation_phantoms.json
    python -m bench.studies.ablation --preset lite0 --data stills phantoms --minutes 40 --output RESULT.json
    python -m bench.studies.ablation --list

Every variant is a training of its own, started from the `improved` recipe with one switch off, or from the published
recipe with one switch on. The published recipe keeps the published losses, augmentation and optimizer settings, has
auxiliary losses and trains everything; its learning rate is tuned: three are tried, and the best one counts. What
depends on size and machine (architecture, batch, precision, learning rate, strength of the weight average, length of
the warm-up) comes from a preset and is the same for all. So is the suppression of duplicates; every variant is scored
without it as well.

The preset `lite0` asks other questions: what the ImageNet weights, the real stills, their motion and the defences
against what betrays lesions bring. There the first folder of --data holds the real stills, the others what is trained
on beside them; all variants are scored on the validation stills.

The result file grows by one variant at a time. Started again, the command goes on where it was stopped, within a
variant too. With `--jobs` several variants train side by side, each with its share of the processor: what else the
machine does then slows all of them alike.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from bench.report import recipes
from bench.report.results import RESULTS
from stnet.command_line import INTERRUPTED, run
from stnet.data.synthetic.still_clips import DEFENCES
from stnet.environment import describe
from stnet.errors import ConfigError, DataError
from stnet.files import write_json
from stnet.training.config import TrainConfig
from stnet.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ("tiny", "improved", "lite0")
# Settings of the recipe that are switched, by the name of the switch. Off: as published.
FROM_IMPROVED = {
    "augmentation": "augmentation",
    "Muon": "optimizer",
    "quality scores": "class_loss",
    "repeated matching": "auxiliary_repeats",
}
FROM_SCALE = {"cosine schedule": "schedule", "weight average": "ema_decay", "warm-up": "warmup_steps"}
DENOISING = {"denoising": 5}  # off in both recipes
PHANTOMS = {"start_from": "tiny"}  # the shipped weights, which have seen phantoms alone; others start at random
RATE_FACTORS = (0.4, 1.0, 2.5)  # learning rates of the published recipe, as factors of the preset's
NO_STILLS = "lite0 without real stills"
# Many small steps: a comparison has minutes where the shipped model had hours.
SHORT = {
    "batch_size": 4,
    "accumulate": 1,
    "warmup_steps": 40,
    "model": ("image_size=192", "max_image_size=256"),
}
ENDLESS = 100_000  # epochs: time ends every training


def variants(preset: str) -> dict[str, dict[str, Any]]:
    """Return the changes to a preset that make each variant, by its name."""
    return _of_shipped() if preset == "lite0" else _of_recipes(preset)


def _of_shipped() -> dict[str, dict[str, Any]]:
    """Return what the material of the shipped model brings; the recipe stays, but for what a short training needs."""
    return {
        "lite0": SHORT,
        # Norms that are kept as they are need the statistics of those weights, so they are trained here.
        "lite0 without ImageNet weights": SHORT
        | {"backbone_weights": "", "model": (*SHORT["model"], "backbone_norm=batch")},
        NO_STILLS: SHORT,
        "lite0 without defences": SHORT | {"without_defences": tuple(DEFENCES)},
        # Stills held, as the first recipes take them: they resize, crop and mirror; the improved one changes gains too.
        "lite0 with published augmentation": SHORT | {"augmentation": "paper"},
        "lite0 with improved augmentation": SHORT | {"augmentation": "improved"},
    }


def _of_recipes(preset: str) -> dict[str, dict[str, Any]]:
    scale, improved, published = TrainConfig.preset(preset), TrainConfig.preset("improved"), TrainConfig()
    on = {switch: {name: getattr(improved, name)} for switch, name in FROM_IMPROVED.items()}
    on |= {switch: {name: getattr(scale, name)} for switch, name in FROM_SCALE.items()}
    names = FROM_IMPROVED | FROM_SCALE
    off = {switch: {name: getattr(published, name)} for switch, name in names.items()}
    everything, nothing = _joined(on), _joined(off)
    made = {"improved": everything}
    made |= {f"improved without {switch}": everything | changes for switch, changes in off.items()}
    repeated = FROM_IMPROVED["repeated matching"]  # means nothing without these losses
    alone = {name: value for name, value in everything.items() if name != repeated}
    made["improved without auxiliary losses"] = alone | {"auxiliary_losses": False}
    made["improved with denoising"] = everything | DENOISING
    for factor in RATE_FACTORS:
        rates = {name: factor * getattr(scale, name) for name in ("learning_rate", "backbone_learning_rate")}
        made[f"published, learning rate x{factor:g}"] = nothing | rates
    made |= {f"published with {switch}": nothing | changes for switch, changes in on.items()}
    made["published with denoising"] = nothing | DENOISING
    if preset == "tiny":
        started = ["improved", "improved without augmentation", *(name for name in made if "learning rate" in name)]
        made |= {f"{name}, from phantoms": made[name] | PHANTOMS for name in started}
    return made


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status. 0: all variants done; 1: one failed; 2: wrong use; 130: interrupted."""
    options = _parser().parse_args(arguments)
    chosen = variants(options.preset)
    if options.list:
        for name, changes in chosen.items():
            print(f"{name}: {', '.join(f'{key}={value}' for key, value in changes.items())}")
        return 0
    status = run(lambda: _run(options, chosen))
    if status == INTERRUPTED:
        print("the same command goes on", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.studies.ablation", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, nargs="+", metavar="DIR", help="dataset folders (BUV layout)")
    parser.add_argument("--minutes", type=float, metavar="M", help="training time of every variant")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help=f"results, for example {RESULTS.name}/ablation_phantoms.json"
    )
    parser.add_argument(
        "--runs", type=Path, metavar="DIR", help="run folders, one per variant (default: beside the results)"
    )
    parser.add_argument(
        "--preset", choices=PRESETS, default=PRESETS[0], help="architecture and scale (default: %(default)s)"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these variants alone")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="variants side by side (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all variants (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--list", action="store_true", help="print the variants and their settings, and end")
    return parser


def _run(options: argparse.Namespace, chosen: dict[str, dict[str, Any]]) -> int:
    for name in ("data", "minutes", "output"):
        if getattr(options, name) is None:
            raise ConfigError(f"--{name}: is needed")
    if options.minutes <= 0:
        raise ConfigError(f"--minutes {options.minutes:g}: must be above 0")
    if options.jobs < 1:
        raise ConfigError(f"--jobs {options.jobs}: must be at least 1")
    if options.preset == "lite0" and len(options.data) < 2:
        raise ConfigError(
            "--data: lite0 compares real stills, the first folder, with what stands beside them; name both"
        )
    unknown = sorted(set(options.only or ()) - set(chosen))
    if unknown:
        raise ConfigError(f"--only {unknown[0]!r}: no such variant; see --list")
    content = _opened(options)
    missing = [name for name in options.only or chosen if name not in content["variants"]]
    pool = ThreadPoolExecutor(options.jobs)
    trainings = {pool.submit(_train_variant, options, name, chosen[name]): name for name in missing}
    failed = False
    try:
        for done in as_completed(trainings):
            row = done.result()
            if row is None:
                failed = True
                continue
            content["variants"][trainings[done]] = row
            write_json(options.output, content)
    finally:
        pool.shutdown(cancel_futures=True)
    print(recipes.variants_table({name: content["variants"][name] for name in chosen if name in content["variants"]}))
    return int(failed)


def _train_variant(options: argparse.Namespace, name: str, changes: Mapping[str, Any]) -> dict[str, Any] | None:
    """Train one variant; return its settings and what it reached, or None where the training failed."""
    runs = options.runs or options.output.with_name(options.output.stem + "_runs")
    folder = RunFolder(runs / "".join(letter if letter.isalnum() else "_" for letter in name))
    print(f"== {name} ({options.minutes:g} minutes)", flush=True)
    log = folder.path.with_suffix(".log")
    status = _train(_command(options, name, changes, folder), options.jobs, log)
    if status:
        print(f"{name}: the training ended with status {status}; the same command tries again", file=sys.stderr)
        return None
    scored, plain = RunFolder(folder.path / "scored"), RunFolder(folder.path / "with_duplicates")
    for output, further in ((scored, []), (plain, ["--duplicate-iou", "1"])):
        if output.evaluation_file.exists():
            continue
        status = _train([*_scoring(options, folder, output), *further], options.jobs, log)
        if status:
            print(f"{name}: the evaluation ended with status {status}; the same command tries again", file=sys.stderr)
            return None
    return {"settings": changes, **_outcome(folder, scored, plain)}


def _opened(options: argparse.Namespace) -> dict[str, Any]:
    """Return the result file so far, which must be of the same comparison."""
    same = {"data": ", ".join(folder.name for folder in options.data)} | {
        name: getattr(options, name) for name in ("minutes", "preset", "seed", "jobs")
    }
    if not options.output.exists():
        device = torch.device("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu")
        content = {**same, "machine": describe(device), "variants": {}}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.output, content)
        return content
    try:
        content = json.loads(options.output.read_text(encoding="utf-8"))
        differing = [name for name, value in same.items() if content[name] != value]
        content["variants"].keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{options.output}: not a result of this command ({error}); name another file") from error
    if differing:
        name = differing[0]
        raise ConfigError(
            f"--output {options.output}: holds a comparison with {name} {content[name]}, not {same[name]}; "
            "name another file"
        )
    return content


def _command(options: argparse.Namespace, name: str, changes: Mapping[str, Any], folder: RunFolder) -> list[str]:
    command = _train_py(options, options.data[1:] if name == NO_STILLS else options.data, folder)
    if folder.config_file.exists():
        return [*command, "--resume"]
    command += ["--no-check", "--preset", options.preset, "--seed", str(options.seed)]
    if options.jobs > 1:
        command += ["--processes", str(_share(options.jobs))]
    command += ["--minutes", str(options.minutes), "--epochs", str(ENDLESS), "--evaluate-every", str(ENDLESS)]
    for name, value in changes.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, tuple):
            command += [f"--{flag}", *value]
        else:
            command += [f"--{flag}", str(value)]
    return command


def _scoring(options: argparse.Namespace, folder: RunFolder, output: RunFolder) -> list[str]:
    """Return the command that scores a finished run on the validation videos of the first folder."""
    return [*_train_py(options, options.data[:1], output), "--evaluate", str(folder.last_file.resolve())]


def _train_py(options: argparse.Namespace, data: Sequence[Path], output: RunFolder) -> list[str]:
    command = [sys.executable, str(ROOT / "train.py"), "--data", *(str(place.resolve()) for place in data)]
    return [*command, "--output", str(output.path.resolve()), "--device", options.device]


def _train(command: list[str], jobs: int, log: Path) -> int:
    """Run a training, alone on the terminal or with its share of the processor and its output in a file."""
    if jobs == 1:
        return subprocess.run(command, cwd=ROOT, check=False).returncode
    threads = str(_share(jobs))
    environment = os.environ | {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as output:
        return subprocess.run(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False
        ).returncode


def _share(jobs: int) -> int:
    """Cores of each of several trainings."""
    return max(1, (os.cpu_count() or 1) // jobs)


def _outcome(folder: RunFolder, scored: RunFolder, plain: RunFolder) -> dict[str, Any]:
    """Return what a finished run reached, and what it reaches with all its duplicates."""
    report = json.loads(scored.evaluation_file.read_text(encoding="utf-8"))
    duplicates = json.loads(plain.evaluation_file.read_text(encoding="utf-8"))["agnostic"]["ap50"]
    rows = folder.rows(folder.metrics_file)
    return {
        "steps": rows[-1]["step"],
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        **report["overall"],
        **{f"agnostic_{name}": value for name, value in report["agnostic"].items()},
        "agnostic_ap50_with_duplicates": duplicates,
        "recall_at_half": report["lesions_in_frames"]["recall_at"]["0.5"],
        "video_auc": report["videos"]["auc"],
    }


def _joined(changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for group in changes.values() for name, value in group.items()}


if __name__ == "__main__":
    sys.exit(main())
