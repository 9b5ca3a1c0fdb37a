from dataclasses import replace

import pytest
import torch
from tests.report.made_up import digits, evaluation, make_run

from noiseprop.data import batches
from noiseprop.errors import InputError
from noiseprop.noise.attach.add_noise import noise_layers
from noiseprop.report.network_views import view_networks
from noiseprop.report.run_groups import group_runs, read_run
from noiseprop.runs.trained_model import load_run
from noiseprop.saliency import smoothgrad


def looked(*folders, images=0, **options):
    groups = group_runs([read_run(folder) for folder in folders])
    return view_networks(groups, data_dir=None, images=images, **options)


@pytest.fixture(scope="module")
def looks(folders):
    return looked(*folders)


def first_of_each_class():
    """The first test images of the first five classes, and their labels, by hand."""
    x, y = next(batches(digits().test, 500, generator=None))
    labels = list(dict.fromkeys(y.tolist()))[:5]
    rows = [y.tolist().index(label) for label in labels]
    return x[rows], y[rows]


def test_examples_are_the_first_images_of_different_classes_in_all_versions(folders, looks):
    x, y = first_of_each_class()
    model, _ = load_run(folders[0])
    model.eval()
    examples = looks[folders[0]].examples
    assert [example.label for example in examples] == [digits().test.classes[label] for label in y]
    for i, example in enumerate(examples):
        assert [seen.name for seen in example.versions[:5]] == ["clean", "fgsm", "lbfgs", "pgd", "gaussian_noise"]
        assert len(example.versions) == 8
        assert torch.equal(example.versions[0].image, x[i])
        for seen in example.versions:
            predicted = int(model(seen.image[None]).argmax())
            assert (seen.label, seen.share) == (digits().test.classes[predicted], None)
            assert seen.right == (predicted == y[i])
        by_name = {seen.name: (seen.image - x[i]).abs().max() for seen in example.versions}
        assert 0.09 < by_name["fgsm"] <= 0.1 + 1e-6
        assert 0.09 < by_name["pgd"] <= 25 / 255 + 1e-6
        assert by_name["gaussian_noise"] > 0.05
    maps = torch.stack([example.saliency for example in examples])
    assert torch.allclose(maps, smoothgrad(model, x, y))


def test_of_a_noisy_network_the_class_that_most_draws_see_is_told_with_its_share(folders, looks):
    look = looks[folders[2]]
    shares = [seen.share for example in look.examples for seen in example.versions]
    assert look.draws == 8
    assert {8 * share for share in shares} <= set(range(1, 9))
    assert len(set(shares)) > 1
    again = looked(*folders)[folders[2]]
    assert [seen.share for example in again.examples for seen in example.versions] == shares


def test_sigma_is_the_network_s_and_of_the_first_run_of_a_group(folders, looks):
    model, _ = load_run(folders[3])
    expected = {path.removesuffix(".noise"): layer.sigma.detach().abs() for path, layer in noise_layers(model).items()}
    found = {sigma.layer: sigma.values for sigma in looks[folders[3]].sigmas}
    assert found.keys() == expected.keys() == {"conv1", "conv2", "fc1", "fc2"}
    assert all(torch.equal(found[layer], expected[layer]) for layer in expected)
    assert (looks[folders[1]].examples, looks[folders[1]].sigmas) == ((), ())


def test_steps_and_draws_that_a_file_asks_for_are_bounded(tmp_path, monkeypatch):
    judged = evaluation("MLPN", 0)
    settings = replace(judged.settings, pgd_steps=10**6, lbfgs_steps=10**6, vote_draws=10**6, attack_draws=(10**6,))
    folder = make_run(tmp_path / "run", judged=replace(judged, settings=settings))
    asked = []

    def stop(model, test, settings, count):
        asked.append(settings)
        raise InputError("enough")

    monkeypatch.setattr("noiseprop.report.network_views._make_examples", stop)
    assert looked(folder)[folder].troubles == ("enough",)
    (s,) = asked
    assert (s.pgd_steps, s.lbfgs_steps, s.vote_draws, s.attack_draws) == (200, 200, 100, (100,))


def test_progress_rises_to_its_end_and_names_what_is_done(folders):
    told = []
    looked(*folders[:2], images=2, progress=lambda done, total, name: told.append((done, total, name)))
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert told[-1] == (16, 16, "done")
    assert {"mlp-0: network", "mlp-0: images", "mlp-0: examples", "mlp-1: network"} <= {name for _, _, name in told}


def test_a_run_that_was_not_evaluated_is_looked_at_with_known_settings(tmp_path):
    folder = make_run(tmp_path / "run", "MLP", judged=None)
    look = looked(folder, images=3)[folder]
    assert (look.curve.images, look.curve.eps[3]) == (3, pytest.approx(25 / 255))
    assert len(look.examples) == 5
