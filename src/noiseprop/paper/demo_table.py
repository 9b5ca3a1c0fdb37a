"""The demo's record as a table, for the terminal and for the README."""

from collections.abc import Mapping, Sequence
from typing import Any

from noiseprop.evaluation.statistics import mean_std

NOISE = {"MLP": "no noise", "MLP+": "fixed noise", "MLPN": "learned noise"}


def heading(record: Mapping[str, Any]) -> list[str]:
    """The columns' names."""
    eot = f"EOT-{record['settings']['eot_draws']}"
    return ["% right", "clean", "FGSM", f"FGSM {eot}", "PGD", f"PGD {eot}"]


def rows(record: Mapping[str, Any]) -> list[list[str]]:
    """One row per network, and one for each noisy network with its noise switched off.

    Cells are mean ± sample standard deviation over the training seeds, in per cent of the test images.
    """
    table: list[list[str]] = []
    for name, runs in record["models"].items():
        for state in ("on", "off"):
            if state in runs[0]:
                keys = ("clean", "fgsm", "fgsm-eot", "pgd", "pgd-eot")
                cells = [_cell([run[state][key] for run in runs]) if key in runs[0][state] else "" for key in keys]
                table.append([name if state == "on" else f"{name}, off", *cells])
    return table


def notes(record: Mapping[str, Any]) -> list[str]:
    """What the columns are, in sentences."""
    settings, data = record["settings"], record["data"]
    pgd = f"eps {255 * settings['pgd_eps']:g}/255, {settings['pgd_steps']} steps of {51 * settings['pgd_eps']:g}/255"
    return [
        f"Per cent of {data['test']} test digits, mean ± standard deviation over {len(settings['seeds'])} training "
        f"seeds; {data['train']:,} digits for training, {settings['epochs']} epochs.",
        f"FGSM: eps {settings['fgsm_eps']:g}. PGD: {pgd}. Both see the network and its noise, with one draw of it per "
        f"gradient or, under EOT-{settings['eot_draws']}, the mean over {settings['eot_draws']} draws.",
        f"Noisy networks are scored by single passes with noise that the attack has not seen, averaged over "
        f"{settings['score_draws']} of them. Off: the same network without its noise, attacked and scored so.",
        _sigma_note(record),
    ]


def _sigma_note(record: Mapping[str, Any]) -> str:
    layers = record["models"]["MLPN"][0]["sigma"]
    ends = {layer: [run["sigma"][layer][-1] for run in record["models"]["MLPN"]] for layer in layers}
    ends_text = ", ".join(f"{mean_std(values)} in {layer}" for layer, values in ends.items())
    return f"MLP+ keeps sigma = 1. MLPN's sigma starts at 1 and is at the end, on average over a layer, {ends_text}."


def _cell(values: Sequence[float]) -> str:
    spread = mean_std([100 * value for value in values])
    return f"{spread.mean:.1f}" if spread.std is None else f"{spread.mean:.1f} ± {spread.std:.1f}"
