"""What tests/faults/test_node.py looks at: `python ray_nodes.py FOLDER` does a grid on a cluster that loses a node.

Three nodes on loopback: a head that computes nothing, and two of one CPU. While both train, the one whose job is less
far is killed. What was told of the jobs, and what the cluster's processes were, is printed as JSON. Then local
processes do the same.
"""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from ray.cluster_utils import Cluster
from test_grid import jobs, quiet

from noiseprop.paper import grid
from noiseprop.paper.grid import run_all
from noiseprop.paper.ray_cluster import use_ray

EPOCHS = 32
NODE = {"node_ip_address": "127.0.0.1", "object_store_memory": 80 * 2**20, "include_dashboard": False}


def main(folder: Path) -> None:
    grid.count_cores = lambda: 2  # so that a job has one thread, and takes one CPU
    cluster = Cluster()
    cluster.add_node(num_cpus=0, **NODE)
    nodes = [cluster.add_node(num_cpus=1, **NODE) for _ in range(2)]
    told: list[tuple[str, int, int, str]] = []
    seen: dict[str, list[str]] = {}

    def show(name: str, done: int, total: int, what: str) -> None:
        told.append((name, done, total, what))
        begun = {n for n, at, of, doing in told if doing.startswith("training") and at > of // 4}
        if len(begun) == 2 and not seen:
            family = descendants(os.getpid())
            workers = {pid: title(pid) for pid in family if title(pid).startswith("ray::MLP")}
            seen["parents"] = [title(parent(pid)) for pid in workers]
            seen["listening"] = listening(family)
            for node in nodes:
                raylet = node.all_processes["raylet"][0].process.pid
                titles = [workers[pid] for pid in descendants(raylet) if pid in workers]
                if any(name in each for each in titles):
                    seen["lost"] = titles
                    cluster.remove_node(node, allow_graceful=False)
            told.append(("", 0, 0, "a node is lost"))

    run_all(jobs(folder / "cluster", epochs=EPOCHS), processes=2, show=show, start=use_ray(cluster.address))
    cluster.shutdown()
    run_all(jobs(folder / "here", epochs=EPOCHS), processes=2, show=quiet)
    print(json.dumps({"told": told, **seen}))


def descendants(ancestor: int) -> list[int]:
    """A process and all that it has started, directly or not."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    family = [ancestor]
    for pid in family:
        family += [child for child in pids if parent(child) == pid]
    return family


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def title(pid: int) -> str:
    """What `ps` shows of it."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0]
    except OSError:
        return ""


def listening(family: list[int]) -> list[str]:
    """Addresses, in the system's hexadecimal, at which these processes wait for TCP connections."""
    sockets = set()
    for pid in family:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                sockets.add(os.readlink(link))
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return sorted({line[1].split(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
