"""A Ray cluster on this machine, of one head without CPUs and nodes of one CPU; it lives as long as this process.

Reads a word a line: `add`, or `kill` and a node's process id; answers each with the process id of the node. The first
thing that it says is the cluster's address.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

LEAST_STORE = 80 * 1024 * 1024  # bytes; Ray takes no less

# Read when ray is first imported: listen on the loopback interface alone.
os.environ.update(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_USAGE_STATS_ENABLED="0")


def main() -> None:
    from ray._private.node import Node
    from ray.cluster_utils import Cluster

    own = {"object_store_memory": LEAST_STORE, "node_ip_address": "127.0.0.1"}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **own})
    nodes: dict[int, Node] = {}
    print(cluster.address, flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "add":
            node = cluster.add_node(num_cpus=1, **own)
            number = node.all_processes["raylet"][0].process.pid
            nodes[number] = node
        else:
            number = int(rest[0])
            cluster.remove_node(nodes.pop(number), allow_graceful=False)
        print(number, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    Path(os.environ["RAY_TMPDIR"]).mkdir(parents=True, exist_ok=True)
    main()
