"""SIGKILL at any moment: the run goes on to the bits of one that nothing disturbed."""

import random
import shutil
import signal
import time

import pytest
from tests.faults.runs import cached, lines, same
from tests.faults.table import ON

pytestmark = pytest.mark.slow
KILLS, EPOCHS = 20, 60


def test_a_training_that_is_killed_20_times(children, train, undisturbed, tmp_path, faults):
    whole = undisturbed.run(EPOCHS)
    rng, killed, moments, number = random.Random(0), 0, [], 0
    while killed < KILLS:
        number += 1
        folder = tmp_path / str(number)
        metrics = folder / "metrics.jsonl"
        for begun in range(0, EPOCHS, EPOCHS // 5):  # killed in each fifth, early enough not to be through it before
            child = children.start(*train(folder, EPOCHS))
            epoch = rng.randint(begun, begun + EPOCHS // 20)
            child.at(lambda metrics=metrics, epoch=epoch: lines(metrics) >= epoch)
            time.sleep(rng.uniform(0, undisturbed.seconds[EPOCHS] / EPOCHS))
            child.send(signal.SIGKILL)
            ended = child.end()
            if ended.code == 0:
                break
            assert ended.code == -signal.SIGKILL, ended
            killed += 1
            moments.append(lines(metrics))
        else:
            assert children.run(*train(folder, EPOCHS)).code == 0
        assert same(folder, whole)
    assert len(set(moments)) > KILLS // 3  # not all before the first epoch
    faults.add("kill", ON, killed)


def test_a_training_that_is_killed_before_each_touch_of_a_file(children, train, undisturbed, tmp_path, faults):
    """The second epoch of two: settings, the first epoch's model again, and then all that an epoch leaves."""
    one, two = undisturbed.run(1), undisturbed.run(2)
    number = 0
    while True:
        number += 1
        folder = tmp_path / str(number)
        shutil.copytree(one, folder)
        ended = children.run(*train(folder, 2), die_at=(folder, number))
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL, ended
        assert children.run(*train(folder, 2)).code == 0
        assert same(folder, two), number
        shutil.rmtree(folder)
    assert number > 30
    faults.add("kill-write", ON, number - 1)


def test_an_evaluation_that_is_killed(children, evaluate, undisturbed, tmp_path, faults):
    folder, rng, killed = undisturbed.unjudged(3, tmp_path / "run"), random.Random(1), 0
    partial, judged = folder / "evaluation.partial.jsonl", folder / "evaluation.json"
    while True:
        child = children.start(*evaluate(folder))
        if killed < 5:  # within one of the next few steps
            step = lines(partial) + rng.randint(0, 6)
            child.at(lambda step=step: lines(partial) >= step or judged.exists())
            time.sleep(rng.uniform(0, 0.1))
            child.send(signal.SIGKILL)
        ended = child.end()
        if ended.code == 0 and killed >= 5:
            break
        if ended.code == 0:
            judged.unlink()
            continue
        assert ended.code == -signal.SIGKILL, ended
        judged.unlink(missing_ok=True)  # killed after the last file was there
        killed += 1
    assert same(folder, undisturbed.evaluated(3), "evaluation.json")
    faults.add("kill-evaluate", ON, killed)


def test_a_decoding_that_is_killed_before_each_touch_of_a_file(children, pictures, decoded, tmp_path, faults):
    """The next process makes the cache, of the same bits, and takes away what the killed one left of its own."""
    number, parts = 0, 0
    while True:
        number += 1
        load = {"do": "load", "cache": tmp_path / str(number)}
        ended = children.run("tiny-imagenet", pictures, die_at=(load["cache"], number), **load)
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL, ended
        parts += any(name.endswith(".part") for name in cached(load["cache"]))
        assert children.run("tiny-imagenet", pictures, **load).code == 0
        assert cached(load["cache"]) == decoded, number
    assert number > 9
    assert parts > 3
    faults.add("kill-cache", ON, number - 1)
