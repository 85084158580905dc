import json
import re
import signal
import sys
import time
from pathlib import Path

import ganzoo
import numpy as np
import pytest
import torch
from .conftest import DATA, TINY, small_options
from ganzoo import Trainer, cli
from ganzoo.metrics.digits import DigitJudge
from ganzoo.plots import save_animation, save_grid
from ganzoo.published import PUBLISHED
from ganzoo.techniques import list_techniques
from ganzoo.training.checkpoint import Generator, load_checkpoint, slerp
from ganzoo.training.compare import compare_speed, speed_line
from ganzoo.training.monitor import Monitor
from ganzoo.variants import DataInfo, Networks
from PIL import Image

QUICK = "--width 4 --latent 8 --batch 16 --no-tensorboard --compare-blocks 0".split()


@pytest.fixture
def ganzoo_command(monkeypatch, capsys):
    """Runs the command line in this process; returns its exit status, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ganzoo", *map(str, arguments)])
        try:
            cli.main()
            status = 0
        except SystemExit as ending:
            status = ending.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def only_run(folder):
    (run,) = Path(folder).iterdir()
    return run


def as_options(values):
    return [text for name, value in values.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def records(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_run_leaves_a_folder_that_explains_itself(name, ganzoo_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [*as_options(small_options(name)), "--no-tensorboard", "--compare-blocks", "0"]
    word, *data_options = DATA.get(name, ("digits",))
    if name in DATA:
        options += ["--data", word, *(["--data-options", *data_options] if data_options else [])]
    status, out, err = ganzoo_command("train", name, *options, "--steps", 12, "--seed", 5, "--save-every", 8)
    assert (status, err) == (0, "")
    run = only_run(tmp_path / "runs")
    assert run.name.startswith(f"{name}-{word}-") and run.name.endswith("-seed5")
    assert {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and path.name != "log.txt"} == {
        "README.txt",
        "config.json",
        "metrics.jsonl",
        "curves.png",
        "samples.png",
        "samples/000008.png",
        "samples/000012.png",
        "generator.safetensors",
        "checkpoint.pt",
        "summary.json",
    }
    config = json.loads((run / "config.json").read_text())
    assert config["command"] == f"ganzoo train {name} {' '.join(options)} --steps 12 --seed 5 --save-every 8"
    assert config["options"].items() >= TINY[name].items() and config["run"]["seed"] == 5
    assert config["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert config["command"] in (run / "README.txt").read_text()
    assert f"ganzoo resume {run.relative_to(tmp_path)}" in (run / "README.txt").read_text()
    assert [record["step"] for record in records(run)] == [8, 10, 12]
    assert ("wasserstein_estimate" in records(run)[0]) == name.startswith("wgan")
    for picture in ("curves.png", "samples.png"):
        assert np.asarray(Image.open(run / picture)).std() > 5
    assert ("of 1000 samples" in out) == (word == "digits")

    status, out, err = ganzoo_command("sample", run, "--n", 10, "--out", "drawn.png")
    assert (status, out) == (0, "Wrote drawn.png\n")
    width, height = Image.open("drawn.png").size
    generator = ganzoo.load(run)
    columns = generator.variant.columns(generator.data)
    rows = -(-10 // columns)
    if len(generator.data.shape) == 3:
        assert height == rows * 70 and (width == columns * 70 or name in DATA)  # a pair is wider
    else:
        assert (width, height) == (600, 600)


def test_killed_and_resumed_equals_uninterrupted(python, ganzoo_command, tmp_path):
    options = ["train", "wgan-gp", *QUICK, "--steps", "30", "--seed", "1", "--save-every", "10"]
    assert ganzoo_command(*options, "--runs", tmp_path / "straight")[0] == 0
    straight = only_run(tmp_path / "straight")

    process = python("-m", "ganzoo", *options, "--runs", str(tmp_path / "killed"))
    while process.poll() is None and not list((tmp_path / "killed").glob("*/samples/000010.png")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed = only_run(tmp_path / "killed")
    assert not (killed / "summary.json").exists()
    with open(killed / "metrics.jsonl", "a") as file:
        file.write('{"step": 28, "sec')  # half a line, as a kill may leave it

    assert ganzoo_command("resume", killed)[0] == 0
    assert records(killed) == records(straight)
    for name in ("generator.safetensors", "samples.png", "samples/000030.png"):
        assert (killed / name).read_bytes() == (straight / name).read_bytes()


def test_resume_goes_on_further(ganzoo_command, tmp_path):
    assert ganzoo_command("train", "gan", *QUICK, "--steps", 20, "--runs", tmp_path / "long")[0] == 0
    assert ganzoo_command("train", "gan", *QUICK, "--steps", 10, "--runs", tmp_path / "short")[0] == 0
    run = only_run(tmp_path / "short")
    ended = f"ganzoo: {run} has ended, after 10 steps; `ganzoo resume {run} --steps 20` goes on to twice as many.\n"
    assert ganzoo_command("resume", run) == (2, "", ended)
    sentence = f"ganzoo: --steps must be above the 10 that {run} has, got 7.\n"
    assert ganzoo_command("resume", run, "--steps", 7) == (2, "", sentence)
    assert ganzoo_command("resume", run, "--steps", 20)[0] == 0
    assert ganzoo.load(run).steps == 20
    assert torch.equal(ganzoo.load(run).sample(3), ganzoo.load(only_run(tmp_path / "long")).sample(3))


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ("train wgan-gp --steps 0", "--steps must be at least 1, got 0."),
        ("train wgan-gp --critic-steps 0", "--critic-steps must be at least 1, got 0."),
        ("train wgan-gp --steps many", "--steps must be a whole number, got 'many'."),
        ("train wgan --clip -1", "--clip must be a finite number above 0, got -1.0."),
        ("train gan --lr fast", "--lr must be a number, got 'fast'."),
        ("train gan --betas 0.5", "--betas must be given 2 value(s), and fewer came."),
        ("train gan --batch 1798", "--batch must be at most the number of images, 1797, got 1798."),
        (
            "train gan --device tpu9",
            "--device must be cpu, or an accelerator of this machine such as cuda, got 'tpu9'.",
        ),
        ("train gan --width 100000000000", "the memory is too small for networks and batches of this size."),
        ("train gan --stps 3", "unrecognized options: --stps, 3; perhaps you meant --steps."),
        (
            "train gan --stps 3 --sed 4",
            "unrecognized options: --stps, 3, --sed, 4; perhaps you meant --seed by --sed; perhaps you meant --steps by --stps.",
        ),
        (
            "train gan --lr 1e-3 --critic-steps 5 --stps 3",
            "train gan has no option --critic-steps, --stps; `ganzoo train gan --help` shows those it has.",
        ),
        (
            "train pix2pix --latent 4",
            "train pix2pix has no option --latent; `ganzoo train pix2pix --help` shows those it has.",
        ),
        ("sample no/run --frames 3", "sample has no option --frames; `ganzoo sample --help` shows those it has."),
        (
            "train gan --runs /dev/null/runs",
            "--runs must be a folder that can be written to (Not a directory), got /dev/null/runs.",
        ),
        ("train dcgan", "unrecognized options: dcgan; available subcommands: " + ", ".join(sorted(TINY)) + "."),
        ("train", "expected one of {" + ", ".join(sorted(TINY)) + "}."),
        ("", "expected one of {train, resume, sample, interpolate, evaluate, reproduce, plot, list}."),
        ("sample", "ganzoo sample needs RUN: The folder of a run, or a generator.safetensors by itself."),
        ("sample no/run", "no/run must be the folder of a run or its generator.safetensors, and there is none."),
        ("sample no/run --n 0", "--n must be at least 1, got 0."),
        ("interpolate no/run --frames 1", "--frames must be at least 2, got 1."),
        ("interpolate no/run", "no/run must be the folder of a run or its generator.safetensors, and there is none."),
        (
            "evaluate no/run --device tpu9",
            "--device must be cpu, or an accelerator of this machine such as cuda, got 'tpu9'.",
        ),
        ("evaluate no/run", "no/run must be the folder of a run or its generator.safetensors, and there is none."),
        ("plot", "plot needs the folders of one or more runs, or games."),
        ("plot games --figures k", "--figures must be left out, unless it is a run that is drawn, got k."),
        ("plot no/run", "no/run must be the folder of a run, and has no metrics.jsonl with figures."),
        (
            "reproduce no/run",
            f"no/run must be the folder of a run, or one of {', '.join(PUBLISHED)}.",
        ),
        ("train gan --precision fp8", "--precision must be one of fp32, bf16, fp16, got 'fp8'."),
        ("train gan --cuda-graph", "--cuda-graph must be used on a CUDA device, got cpu."),
        ("train gan --data-options size", "--data-options must be pairs such as size=32, got size."),
        ("reproduce no/run --trials 2", "--trials must be 0, or at least 1 for a published row, got 2."),
        (
            "reproduce no/run --device cuda",
            "--device must be left out, unless a published row is to train there, got cuda.",
        ),
        ("resume no/run", "no/run must be the folder of a run, and has no checkpoint.pt."),
    ],
)
def test_mistakes_on_the_command_line_get_one_sentence(arguments, sentence, ganzoo_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ganzoo_command(*arguments.split()) == (2, "", f"ganzoo: {sentence}\n")
    assert list(tmp_path.iterdir()) == []


def test_what_can_be_done_with_a_run(ganzoo_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ganzoo_command("train", "wgan-gp", *(o for o in QUICK if o != "--no-tensorboard"), "--steps", 20)[0] == 0
    run = only_run("runs")
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))

    status, out, _ = ganzoo_command("interpolate", run, "--frames", 5, "--between", 3, "--path", "lerp")
    assert (status, out) == (0, "Wrote interpolation.png and interpolation.gif\n")
    assert Image.open("interpolation.png").size == (5 * 70, 2 * 70)
    assert Image.open("interpolation.gif").n_frames == 9 + 7
    assert ganzoo_command("interpolate", run, "--space", "w")[2].startswith("ganzoo: wgan-gp has no styles w")

    status, out, _ = ganzoo_command("evaluate", run, "--n", 100, "--extractor", "pixels")
    figures = [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]
    assert status == 0 and len(out.splitlines()) == len(figures) and {f["step"] for f in figures} == {20}
    arguments = ["evaluate", run, "--n", 100, "--extractor", "pixels", "--data-options", "split=test"]
    assert "reference digits/test, 540" in ganzoo_command(*arguments, "--data", "digits")[1]
    status, _, err = ganzoo_command(*arguments)
    assert (status, err) == (
        2,
        "ganzoo: --data-options must be left out, unless --data says of what, got split=test.\n",
    )

    assert ganzoo_command("plot", run, "--figures", "critic_loss", "--out", "one.png")[0] == 0
    assert ganzoo_command("plot", run, "--figures", "step")[2].startswith(
        "ganzoo: --figures must be among critic_loss, "
    )
    for folder in ("runs", "/", "."):
        sentence = f"ganzoo: --out must be a file that can be written (Is a directory), got {folder}.\n"
        assert ganzoo_command("sample", run, "--n", 1, "--out", folder) == (2, "", sentence)
    assert Image.open("one.png").size[1] < Image.open(run / "curves.png").size[1]
    assert ganzoo_command("plot", run, run, "--figures", "critic_loss", "generator_loss", "--out", "both.pdf")[0] == 0
    assert Path("both.pdf").read_bytes().startswith(b"%PDF")

    status, out, _ = ganzoo_command("reproduce", run, "--runs", "again")
    assert status == 0 and out.splitlines()[-1] == "The weights are equal to the bit."
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "run": {**config["run"], "seed": 9}}))
    status, out, _ = ganzoo_command("reproduce", run, "--runs", "other")
    assert status == 0 and "The weights differ." in out and re.search(r"^critic_loss: \S+ then, \S+ now$", out, re.M)


def test_the_three_games_are_drawn_side_by_side(ganzoo_command, tmp_path):
    picture = tmp_path / "games.png"
    assert ganzoo_command("plot", "games", "--out", picture) == (0, f"Wrote {picture}\n", "")
    pixels = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
    colours = {tuple(pixel) for pixel in pixels.tolist()}
    assert colours > {(31, 119, 180), (255, 127, 14), (44, 160, 44)}  # a line for each game


def test_interpolations_pass_through_their_latents(images):
    trainer = Trainer(ganzoo.create("gan", width=2, latent=4, batch=4), images)
    generator = Generator(trainer.variant, trainer.data, 0, trainer.sampling())
    ends = generator.sample(3, seed=5)
    for path in ("lerp", "slerp"):
        walk = generator.interpolate(3, 4, path=path, seed=5)
        torch.testing.assert_close(walk[[0, 3, 6]], ends)
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    torch.testing.assert_close(slerp(a, b, 0.5), torch.tensor([3.0, 3.0]) / 2**0.5)
    torch.testing.assert_close(slerp(a, a, 0.5), a)


def test_points_and_sequences_are_walked_between_too(ganzoo_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ganzoo_command("train", "gan", *QUICK, "--steps", 1, "--data", "ring", "--data-options", "n=64")[0] == 0
    arguments = ["interpolate", only_run("runs"), "--frames", 4]
    assert ganzoo_command(*arguments)[:2] == (0, "Wrote interpolation.png and interpolation.gif\n")
    assert Image.open("interpolation.png").size == (600, 600)
    assert Image.open("interpolation.gif").size == (300, 300) and Image.open("interpolation.gif").n_frames == 4 + 2
    status, _, err = ganzoo_command(*arguments, "--out", "x.png", "--animation", "x.png")
    assert (status, err) == (2, "ganzoo: --animation must be another file than the strip's, got x.png.\n")
    save_animation(
        "waves.gif", torch.linspace(0, 9, 90).sin().view(3, 30, 1) * torch.tensor([[[1.0]], [[2.0]], [[3.0]]])
    )
    assert Image.open("waves.gif").n_frames == 3 + 1


class Styled(torch.nn.Module):
    """A generator with a mapping from latents to styles."""

    def __init__(self):
        super().__init__()
        self.mapping, self.synthesis = (
            torch.nn.Linear(4, 3),
            torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh()),
        )

    def forward(self, latents):
        return self.synthesis(self.mapping(latents))


def test_styles_are_mixed_between_those_of_the_latents():
    variant = ganzoo.create("gan", latent=4)
    generator = Generator(variant, None, 0, Networks(generator=Styled()))
    a, b = variant.latents(2, torch.Generator().manual_seed(5))
    walk = generator.interpolate(2, 3, space="w", path="lerp", seed=5)
    network = generator.networks.generator
    torch.testing.assert_close(walk[[0, 2]], network(torch.stack([a, b])))
    torch.testing.assert_close(walk[1], network.synthesis((network.mapping(a) + network.mapping(b)) / 2))


class OfClasses(Styled):
    """The same, conditional on labels."""

    class Mapping(torch.nn.Embedding):
        def forward(self, latents, labels):
            return latents[:, :3] + super().forward(labels)

    def __init__(self):
        super().__init__()
        self.mapping = self.Mapping(3, 3)

    def forward(self, latents, labels):
        return self.synthesis(self.mapping(latents, labels))


def test_conditional_generators_draw_the_class_that_is_asked_for():
    class Conditional(type(ganzoo.create("gan"))):
        conditional = True

        def sample(self, networks, latents, labels=None):
            return networks.generator(latents, labels)

    variant = Conditional(latent=4)
    generator = Generator(variant, DataInfo("toy", (2,), 3), 0, Networks(generator=OfClasses()))
    ends = variant.latents(2, torch.Generator().manual_seed(5))
    for space in "zw":
        for label in (0, 2):
            walk = generator.interpolate(2, 3, space=space, seed=5, label=label)
            torch.testing.assert_close(walk[[0, 2]], generator.networks.generator(ends, torch.tensor([label, label])))
    assert torch.equal(generator.sample(3, labels=[0, 1, 2]), generator.sample(3))
    assert not torch.equal(generator.sample(3, labels=[0, 0, 0]), generator.sample(3))
    for mistake, sentence in [
        (lambda: generator.interpolate(label=3), "label must be from 0 to 2, got 3."),
        (
            lambda: Generator(ganzoo.create("gan"), None, 0, Networks(generator=Styled())).interpolate(label=3),
            "label must be left out, as the generator is not conditional, got 3.",
        ),
        (lambda: generator.sample(2, labels=[0]), "labels must be 2 whole numbers from 0 to 2, got [0]."),
        (lambda: generator.sample(2, labels=[0, 3]), "labels must be 2 whole numbers from 0 to 2, got [0, 3]."),
        (lambda: generator.sample(1, labels=[0.5]), "labels must be 1 whole numbers from 0 to 2, got [0.5]."),
        (
            lambda: Generator(ganzoo.create("gan"), None, 0, None).sample(1, labels=torch.zeros(1)),
            "labels must be left out, as the generator is not conditional, got 1 of them.",
        ),
        (
            lambda: Trainer(variant, ganzoo.data.open("swiss-roll", n=64)),
            "data must be labelled, for a variant that is conditional, got no labels of swiss-roll.",
        ),
    ]:
        with pytest.raises(ganzoo.ArgumentError, match=f"^ganzoo: {re.escape(sentence)}$"):
            mistake()


def test_a_run_that_diverges_goes_back_and_on_with_other_numbers(ganzoo_command, tmp_path, monkeypatch):
    step = Trainer.step

    def diverging(trainer):
        figures = step(trainer)
        bad = trainer.attempt == 0 and trainer.steps == 27
        return {**figures, "generator_loss": torch.tensor(float("nan"))} if bad else figures

    monkeypatch.setattr(Trainer, "step", diverging)
    options = [*QUICK, "--steps", 40, "--save-every", 20, "--runs", tmp_path, "--rollbacks", 1]
    assert ganzoo_command("train", "gan", *options)[0] == 0
    run = only_run(tmp_path)
    assert (
        "step 27: training diverged: generator loss is nan at step 27; back to step 20.\n"
        in (run / "log.txt").read_text()
    )
    assert [record["step"] for record in records(run)] == [10, 20, 30, 40]
    assert load_checkpoint(run)["attempt"] == 1


def test_list_and_help(ganzoo_command):
    status, out, _ = ganzoo_command("list")
    variants, _, techniques = (part.splitlines() for part in out.split("\n\n"))
    assert status == 0 and [line.split()[0] for line in variants] == ganzoo.list_variants()
    assert [line.split()[0] for line in techniques] == list_techniques() and "(sigma=0.1, anneal=2000)" in out
    status, out, _ = ganzoo_command("train", "wgan-gp", "--help")
    assert status == 0 and "1704.00028" in out and "--penalty-weight" in out and "λ, the weight" in out


def test_import_is_light(python):
    code = (
        "import sys, ganzoo; print([m for m in ('matplotlib', 'sklearn', 'tyro', 'rich', 'PIL') if m in sys.modules])"
    )
    out, errors = python("-c", code).communicate()
    assert out.strip() == "[]", errors


def test_divergence_ends_the_run_and_keeps_the_last_good_checkpoint(ganzoo_command, tmp_path, monkeypatch):
    step = Trainer.step

    def diverging(trainer):
        figures = step(trainer)
        return {**figures, "generator_loss": torch.tensor(float("nan"))} if trainer.steps == 20 else figures

    monkeypatch.setattr(Trainer, "step", diverging)
    status, _, err = ganzoo_command("train", "gan", *QUICK, "--steps", 30, "--save-every", 10, "--runs", tmp_path)
    said = "training diverged: generator loss is nan at step 20.\n"
    assert (status, err) == (2, f"ganzoo: {said}") and (only_run(tmp_path) / "log.txt").read_text().endswith(
        f"step 20: {said}"
    )
    assert ganzoo.load(only_run(tmp_path)).steps == 10


def test_a_run_and_its_data_can_be_moved(ganzoo_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    for number in range(16):
        Image.fromarray(np.full((8, 8), 16 * number, np.uint8)).save(f"pictures/{number}.png")
    assert ganzoo_command("train", "gan", *QUICK, "--steps", 2, "--data", "pictures")[0] == 0
    run = only_run("runs").rename("moved")
    Path("pictures").rename("elsewhere")
    status, _, err = ganzoo_command("resume", run, "--steps", 4)
    assert status == 2 and err.startswith("ganzoo: --data must be one of") and err.endswith("got 'pictures'.\n")
    status, _, err = ganzoo_command("resume", run, "--steps", 4, "--data", "ring")
    said = "ganzoo: moved/checkpoint.pt does not fit the networks that its config.json makes for ring.\n"
    assert (status, err) == (2, said)
    assert ganzoo_command("resume", run, "--steps", 4, "--data", "elsewhere")[0] == 0
    assert "ganzoo resume moved\n" in (run / "README.txt").read_text()
    assert ganzoo_command("resume", run, "--steps", 6)[0] == 0 and ganzoo.load(run).steps == 6


def test_a_run_goes_on_elsewhere_than_on_the_device_that_it_was_on(ganzoo_command, tmp_path):
    assert ganzoo_command("train", "gan", *QUICK, "--steps", 2, "--runs", tmp_path)[0] == 0
    run = only_run(tmp_path)
    config = json.loads((run / "config.json").read_text())
    config["run"]["device"] = "tpu9"
    (run / "config.json").write_text(json.dumps(config))
    sentence = "ganzoo: --device must be cpu, or an accelerator of this machine such as cuda, got 'tpu9'.\n"
    assert ganzoo_command("resume", run, "--steps", 4) == (2, "", sentence)
    assert ganzoo_command("resume", run, "--steps", 4, "--device", "cpu")[0] == 0
    assert json.loads((run / "config.json").read_text())["run"]["device"] == "cpu"


def test_a_training_that_fails_before_it_has_figures_leaves_no_folder(ganzoo_command, tmp_path, monkeypatch):
    step = Trainer.step

    def refused(trainer):
        if trainer.steps == at:
            raise ganzoo.Error("this step is refused.")
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", refused)
    for at, kept in ((0, 0), (9, 0), (15, 1)):
        assert ganzoo_command("train", "gan", *QUICK, "--runs", tmp_path)[::2] == (2, "ganzoo: this step is refused.\n")
        assert len(list(tmp_path.iterdir())) == kept


def test_a_run_that_is_told_to_stop_keeps_its_folder(ganzoo_command, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "step", lambda trainer: signal.raise_signal(signal.SIGTERM))
    status, _, err = ganzoo_command("train", "gan", *QUICK, "--runs", tmp_path)
    run = only_run(tmp_path)
    assert (status, err) == (
        2,
        f"ganzoo: the run was told to stop, at step 0; `ganzoo resume {run}` goes on from the last checkpoint.\n",
    )
    assert load_checkpoint(run)["steps"] == 0


def test_monitor_writes_the_curves_as_json_lines(tmp_path):
    with Monitor(tmp_path, "title", 0, 3) as monitor:
        monitor.log(2, {"critic_loss": 0.5})
    with Monitor(tmp_path, "title", 2, 3) as monitor:
        monitor.log(3, {"critic_loss": 0.25})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["critic_loss"]) for line in lines] == [(2, 0.5), (3, 0.25)]
    assert 0 <= lines[0]["seconds"] <= lines[1]["seconds"]


def test_alarms_are_in_the_progress_line_until_all_is_well(tmp_path, capsys):
    with Monitor(tmp_path, "title", 0, 3) as monitor:
        monitor.log(1, {"critic_loss": 0.5})
        monitor.alarm(1, ["the samples are nearly alike", "the discriminator overpowers"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "critic loss 0.500 ALARM: the samples are nearly alike; the discriminator overpowers" in shown
    assert (tmp_path / "log.txt").read_text() == (
        "step 1: alarm: the samples are nearly alike.\nstep 1: alarm: the discriminator overpowers.\n"
    )
    with Monitor(tmp_path, "title", 1, 3) as monitor:
        monitor.alarm(2, ["the samples are nearly alike"])
        monitor.alarm(3, [])
    assert "ALARM" not in capsys.readouterr().out


def test_a_pretraining_without_a_training_is_an_alarm_from_the_first_step_on(ganzoo_command, tmp_path):
    options = [*QUICK, "--patch", 4, "--pretraining", 10, "--steps", 10, "--runs", tmp_path]
    status, out, _ = ganzoo_command("train", "stylegan-t", *options)
    said = "in 10 steps nothing trains the discriminator and the generator; it takes at least 11"
    run = only_run(tmp_path)
    assert status == 0 and f"ALARM: {said}" in " ".join(out.split())
    assert (run / "log.txt").read_text().startswith(f"step 0: alarm: {said}.\nstep 10: alarm: {said}")
    status, out, _ = ganzoo_command("resume", run, "--steps", 11)
    assert status == 0 and "nothing trains" not in out


def test_figures_can_be_read_by_tensorboard_also_those_of_a_resumed_run(ganzoo_command, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = [o for o in QUICK if o != "--no-tensorboard"]
    assert ganzoo_command("train", "gan", *options, "--steps", 20, "--runs", tmp_path)[0] == 0
    run = only_run(tmp_path)
    assert ganzoo_command("resume", run, "--steps", 40)[0] == 0
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    lines = records(run)
    assert {*events.Tags()["scalars"], "step"} == {name for line in lines for name in line}
    seen = [(event.step, event.value) for event in events.Scalars("generator_loss")]
    assert seen == [(line["step"], pytest.approx(line["generator_loss"])) for line in lines]


def test_grid_shows_each_image_in_its_place(tmp_path):
    images = torch.full((3, 1, 8, 8), -1.0)
    images[1] = 1.0
    save_grid(tmp_path / "grid.png", images, columns=2)
    pixels = np.asarray(Image.open(tmp_path / "grid.png"))
    assert pixels.shape == (140, 140)
    assert [[pixels[row, column] for column in (35, 105)] for row in (35, 105)] == [[0, 255], [0, 0]]


def test_speed_is_compared_with_the_same_work_on_both_sides(images, monkeypatch):
    variant = ganzoo.create("wgan-gp", width=4, batch=16, critic_steps=2)
    taken = {"gankernels": 0, "stock": 0}
    step = Trainer.step

    def counted(trainer):
        taken[trainer._ops.name] += 1
        if trainer._ops.name == "gankernels":
            time.sleep(0.05)
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", counted)
    monkeypatch.setattr("ganzoo.training.compare.BLOCK_SECONDS", 0.05)
    speed = compare_speed(variant, images, device="cpu", blocks=3)
    assert speed["ratio"] < 1 and speed["images_per_second"] < 32 / 0.05
    assert taken["stock"] - 3 == taken["gankernels"]
    assert "gankernels is SLOWER here" in speed_line(speed)


def test_speed_line_says_both_rates_and_who_is_faster():
    speed = {"images_per_second": 6000.4, "stock_images_per_second": 4000.0, "ratio": 1.5, "blocks": 11}
    assert speed_line(speed) == (
        "gankernels 6,000 images/s, stock PyTorch 4,000 images/s: gankernels is 1.50 times as fast "
        "(medians of 11 interleaved blocks)."
    )
    assert "gankernels is SLOWER here, 0.50 times as fast" in speed_line({**speed, "ratio": 0.5})


def test_the_last_line_of_a_run_compares_the_speeds(ganzoo_command, tmp_path, monkeypatch):
    monkeypatch.setattr("ganzoo.training.compare.BLOCK_SECONDS", 0.05)
    options = [*QUICK[:-1], "2"]
    _, out, _ = ganzoo_command("train", "sngan", *options, "--steps", 1, "--runs", tmp_path)
    speed = json.loads((only_run(tmp_path) / "summary.json").read_text())["speed"]
    assert out.splitlines()[-1] == speed_line(speed)
    assert re.match(r"gankernels [\d,]+ images/s, stock PyTorch [\d,]+ images/s: ", out.splitlines()[-1])


def test_training_improves_what_the_classifier_recognises(images):
    judge = DigitJudge()
    variant = ganzoo.create("wgan-gp", width=16, critic_steps=3, lr=2e-3, ema=0.97)
    trainer = Trainer(variant, images, seed=0)
    untrained = judge.judge(trainer.sample(1000))
    for _ in range(150):
        trainer.step()
    trained = judge.judge(trainer.sample(1000))
    assert trained["recognised"] > untrained["recognised"] + 0.05
    assert trained["classes"] >= 9 > untrained["classes"]


def test_the_judge_knows_digits_from_noise():
    judge = DigitJudge()
    assert judge.held_out()["recognised"] > 0.65 and judge.held_out()["classes"] == 10
    noise = torch.rand(1000, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert judge.judge(noise)["recognised"] < 0.1
    assert judge.judge(-torch.ones(100, 1, 8, 8))["classes"] == 1
