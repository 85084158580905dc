import os
import signal

import ganzoo
import pytest
import torch
from ganzoo import Trainer
from ganzoo.files import sweep
from ganzoo.training.checkpoint import load_checkpoint, save_checkpoint, write_atomically


@pytest.fixture
def trainer(images):
    trainer = Trainer(ganzoo.create("wgan-gp", width=4, latent=8, batch=16), images)
    trainer.step()
    return trainer


def in_a_child(action):
    """Runs `action` in a forked process and returns the signal that ended it, 0 for none."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_killed_within_a_save_leaves_the_last_good_one(moment, trainer, tmp_path, monkeypatch):
    save_checkpoint(tmp_path, trainer)
    trainer.step()

    def killed_while_saving():
        monkeypatch.setattr(os, moment, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        save_checkpoint(tmp_path, trainer)

    assert in_a_child(killed_while_saving) == signal.SIGKILL
    assert load_checkpoint(tmp_path)["steps"] == 1
    assert ganzoo.load(tmp_path).steps == 1
    assert len(list(tmp_path.iterdir())) == 3  # the third is what was being written
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "generator.safetensors"]
    save_checkpoint(tmp_path, trainer)
    assert load_checkpoint(tmp_path)["steps"] == 2


def test_a_failed_write_leaves_nothing_beside_the_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        write_atomically(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_samples_need_neither_data_nor_training(trainer, tmp_path, python):
    save_checkpoint(tmp_path, trainer)
    torch.save(trainer.sample(5, seed=7), tmp_path / "expected.pt")
    (tmp_path / "checkpoint.pt").unlink()
    code = """
import sys
sys.modules["sklearn"] = None  # importing it now raises
import torch, ganzoo
assert torch.equal(ganzoo.load(sys.argv[1]).sample(5, seed=7), torch.load(sys.argv[1] + "/expected.pt"))
assert torch.equal(
    ganzoo.load(sys.argv[1] + "/generator.safetensors").sample(5, seed=7), torch.load(sys.argv[1] + "/expected.pt")
)
"""
    process = python("-c", code, str(tmp_path))
    _, errors = process.communicate()
    assert process.returncode == 0, errors


@pytest.mark.parametrize("name, read", [("checkpoint.pt", load_checkpoint), ("generator.safetensors", ganzoo.load)])
@pytest.mark.parametrize("damage", ["empty", "truncated", "garbage", "missing"])
def test_damaged_files_are_named_in_one_sentence(name, read, damage, trainer, tmp_path):
    save_checkpoint(tmp_path, trainer)
    content = (tmp_path / name).read_bytes()
    if damage == "missing":
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(
            {"empty": b"", "truncated": content[: len(content) // 2], "garbage": b"no checkpoint" * 99}[damage]
        )
    with pytest.raises(ganzoo.Error) as refused:
        read(tmp_path)
    assert (
        str(refused.value).startswith("ganzoo: ") and str(refused.value).count("\n") == 0 and name in str(refused.value)
    )


def test_a_checkpoint_runs_no_code(tmp_path):
    class Harm:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "harm"),))

    torch.save({"steps": Harm()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ganzoo.Error):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "harm").exists()
