"""How the figures of a record were made, in plain sentences: recipe, data, numbers of images."""

from noiseprop.paper.protocol import RESNETS, TABLES
from noiseprop.paper.results import Record, runs_of
from noiseprop.paper.tables import listed, rows_of


def how(record: Record) -> str:
    """How the figures of a record were made: recipe, data and numbers of images, in plain sentences."""
    settings, test = record["settings"], record["data"]["test_images"]
    attacked = min(settings["attack_images"], test)
    if "recipe" not in record:
        return f"Table 1's recipe, {record['epochs']} epochs; {test:,} test images, {attacked:,} of them attacked."
    recipe, images = record["recipe"], record["images"]
    named = "Table 1's recipe" if recipe["name"] == "table1" else f"The {recipe['name']} recipe, not the paper's"
    augmented = ", cropped and flipped at random" if recipe["augment"] else ""
    epochs = max(len(run["course"]["train_loss"]) for run in record["runs"])
    optimizer = {"adam": "Adam", "sgd": "SGD"}[recipe["optimizer"]]
    sentences = [
        f"{named}: {optimizer} {recipe['lr']:g}, {recipe['schedule']}, {epochs} "
        f"epoch{'s' * (epochs > 1)} in {recipe['precision']} on {images['train']:,} images{augmented}.",
        f"{record['source']}.",
        f"{test:,} of {images['test']:,} test images, {attacked:,} of them attacked, in {record['judged_in']}.",
    ]
    if few := _many_draws(record):
        sentences += [few, f"A vote is of {settings['vote_draws']} draws."]
    if record["table"] in RESNETS:
        surrogate = f"a {TABLES[record['table']][0].name} without noise and with one Linear layer as its head"
        sentences.append(f"Black-box attacks were made on {surrogate}, trained by the same recipe on the same images.")
    return " ".join([*sentences, votes(record)]).rstrip()


def _many_draws(record: Record) -> str:
    """On how many images networks with noise were attacked with the most draws, where these are not all attacked."""
    draws = max(record["settings"]["attack_draws"])
    counts: dict[int, list[str]] = {}
    for name in rows_of(record):
        found = runs_of(record, name)[0]["figures"].get(f"pgd/one/{draws}/0")
        if found is not None and draws > 1:
            counts.setdefault(int(found[1]), []).append(name)
    told = [f"of {', '.join(names)} on {count:,} images" for count, names in counts.items()]
    return f"White-box attacks averaged over {draws} draws: {'; '.join(told)}." if told else ""


def votes(record: Record) -> str:
    """On how many images networks with noise were judged by vote, where these are not all."""
    counts: dict[int, list[str]] = {}
    for name in rows_of(record):
        found = runs_of(record, name)[-1]["figures"].get("clean/vote/0/0")
        if found is not None and found[1] < record["data"]["test_images"]:
            counts.setdefault(int(found[1]), []).append(name)
    return " ".join(f"Votes of {listed(names)}: on the first {n:,}." for n, names in counts.items())
