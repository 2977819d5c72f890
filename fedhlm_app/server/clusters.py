"""Which cluster each client of a run is in: assigned, drawn, or learned and learned anew."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from logging import INFO, WARNING
from typing import Any, Protocol, cast

import numpy as np
from flwr.common.logger import log
from flwr.serverapp import Grid

from clients.learning.profile import Profile, ProfileError
from fedhlm_app.client.profiles import (
    learns_clusters,
    profile_settings,
    received_array,
    received_bytes,
    request,
)
from fedhlm_app.server.introducing import IntroducingGrid
from fedhlm_app.server.roster import LATE_SECONDS, Roster, numbers
from fedhlm_app.settings import Settings
from strategies.cluster_map import (
    AssignedClusters,
    ClusterMap,
    contiguous,
    round_robin,
    shuffled,
)
from strategies.clustering.learned import LearnedClusters
from strategies.clustering.methods import Method, cluster_clients
from strategies.clustering.result import ClusterResult


class Reclusters(Protocol):
    """What a strategy offers to go on with other clusters."""

    def recluster(self, cluster_map: ClusterMap, members: Mapping[int, int] | None = None) -> None:
        """See `strategies.hierarchical.Hierarchical.recluster`."""
        ...


class Clusters:
    """The cluster map of a run, and the queries by which the server comes to know its nodes.

    Parameters
    ----------
    settings : Settings
        Of the run.

    Attributes
    ----------
    map : AssignedClusters or LearnedClusters
        Another one after every clustering. Before the first, and where it has too few profiles,
        a client is in ``client % clusters``.
    refused : dict of int to str
        Clients whose last profile was refused, with the reason.
    silent : list of int
        Clients that sent no profile when last asked.
    roster : Roster
        Which node is which client.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.learned = learns_clusters(settings)
        self.map: AssignedClusters | LearnedClusters
        if self.learned:
            self.map = _unclustered(settings.clusters)
        else:
            self.map = AssignedClusters({}, _assignment(settings), settings.clusters)
        self.refused: dict[int, str] = {}
        self.silent: list[int] = []
        self.roster = Roster(settings.clients)
        self.bytes = 0
        self.clusterings = 0
        self._clustered_after = -1
        self._asked_after: dict[int, int] = {}
        self._releases: Counter[int] = Counter()

    @property
    def assignment(self) -> list[int]:
        """Cluster of each client, by its index."""
        if isinstance(self.map, LearnedClusters):
            return [self.map.cluster_of(client) for client in range(self.settings.clients)]
        return list(self.map.assignment)

    @property
    def epsilon(self) -> float | None:
        """Privacy spent at `privacy-delta` by the client asked most often; None without noise."""
        found = profile_settings(self.settings).epsilon(max(self._releases.values(), default=0))
        return found if self.learned and math.isfinite(found) and self._releases else None

    # --- who is there -----------------------------------------------------------------------

    def introduce(self, grid: Grid, strategy: Reclusters) -> None:
        """Wait for the run's clients to say who they are, and cluster them if that is wanted.

        Flower's own node ids are random; only the data partition names a client.
        """
        self._register(self.roster.wait(grid))
        if self.learned and self._clustered_after < 0:
            self._cluster(0, strategy)
        else:
            self._place(list(self.roster.nodes))

    def watch(self, grid: Grid) -> Grid:
        """The grid, one that introduces nodes of which it hears for the first time."""
        return cast(Grid, IntroducingGrid(grid, self))

    def meet(self, nodes: Sequence[int]) -> None:
        """Introduce and place those of `nodes` that are not known yet."""
        new = self.roster.identify(nodes, LATE_SECONDS)
        self.roster.look(nodes)
        if new:
            log(INFO, "late or returning clients: %s", numbers(new))
            self._register(new)
            self._place(new)

    def _register(self, clients: Sequence[int]) -> None:
        for client in clients:
            self.map.register(self.roster.nodes[client], client)

    # --- profiles ---------------------------------------------------------------------------

    def renew(self, server_round: int, strategy: Reclusters) -> bool:
        """Cluster anew where it is time to, after round `server_round`; tell whether it was.

        A new cluster starts from its members' last policies. Numbers stay with most clients.
        """
        every, rounds = self.settings.recluster_every, self.settings.rounds
        if not (self.learned and every) or server_round % every or server_round >= rounds:
            return False
        return self._cluster(server_round, strategy)

    def _cluster(self, server_round: int, strategy: Reclusters) -> bool:
        self._clustered_after = server_round
        seconds = self.settings.round_timeout
        return self.learn(
            self._profiles(sorted(self.roster.nodes), server_round, seconds), strategy
        )

    def learn(self, profiles: Mapping[int, Profile], strategy: Reclusters) -> bool:
        """Cluster clients by their profiles, in ascending order; tell whether that could be done.

        Parameters
        ----------
        profiles : mapping of client to Profile
        strategy : Reclusters
            Goes on with the clusters that are found.
        """
        settings, members = self.settings, list(profiles)
        try:
            result = cluster_clients(
                list(profiles.values()),
                settings.clusters,
                cast(Method, settings.cluster_by),
                settings.seed,
            )
        except ValueError as error:
            log(WARNING, "clusters stay as they are: %s", error)
            return False
        self.map = cast(LearnedClusters, self.map).recluster(members, result)
        self.clusterings += 1
        strategy.recluster(self.map, dict(enumerate(self.assignment)))
        sizes = np.bincount(self.assignment, minlength=settings.clusters).tolist()
        log(INFO, "clusters learned from %d profiles, sizes %s", len(members), sizes)
        return True

    def _place(self, clients: Sequence[int]) -> None:
        """Put clients that were not asked at the last clustering into the nearest cluster."""
        learned = self.map
        if not isinstance(learned, LearnedClusters) or learned.result.space is None:
            return
        last = self._clustered_after
        missed = [client for client in sorted(clients) if self._asked_after.get(client, -1) < last]
        for client, profile in self._profiles(missed, last, 3 * LATE_SECONDS).items():
            try:
                learned.place(client, profile)
            except ValueError as error:
                self._refuse(client, str(error))

    def _profiles(self, clients: Sequence[int], release: int, seconds: float) -> dict[int, Profile]:
        """Ask for profiles; the good ones by client, in ascending order."""
        agreed = profile_settings(self.settings)
        nodes = [self.roster.nodes[client] for client in clients]
        found: dict[int, Profile] = {}
        heard = set()
        for reply in self.roster.query(nodes, request(release), f"profiles-{release}", seconds):
            client = self.roster.clients[reply.metadata.src_node_id]
            if client in heard:
                continue
            heard.add(client)
            self.bytes += received_bytes(reply.content)
            try:
                profile = Profile.from_array(received_array(reply.content, agreed), agreed)
                most = self.settings.profile_prompts
                if profile.prompts > most:
                    # Prompts are weights: whoever could claim millions would place all clusters.
                    raise ProfileError(
                        f"profile.prompts: {profile.prompts}; allowed: at most {most}"
                    )
                found[client] = profile
                self.refused.pop(client, None)
            except ProfileError as error:
                self._refuse(client, str(error))
        for client in clients:
            # Noise is spent when the profile is made, whether it arrives or not.
            self._releases[client] += 1
            self._asked_after[client] = release
        missing = set(clients) - heard
        self.silent = sorted((set(self.silent) - heard) | missing)
        if missing:
            log(WARNING, "no profile from clients %s", numbers(missing))
        return dict(sorted(found.items()))

    def _refuse(self, client: int, reason: str) -> None:
        self.refused[client] = reason
        log(WARNING, "profile of client %d refused: %s", client, reason)

    # --- state ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; node ids change with every start and stay out."""
        if isinstance(self.map, AssignedClusters):
            return {"learned": False, "assignment": list(self.map.assignment)}
        return {
            "learned": True,
            "map": self.map.state_dict(),
            "clusterings": self.clusterings,
            "clustered_after": self._clustered_after,
            "asked_after": _keyed(self._asked_after),
            "releases": _keyed(self._releases),
            "refused": _keyed(self.refused),
            "silent": list(self.silent),
            "bytes": self.bytes,
        }

    def load_state_dict(self, state: Mapping[str, Any], strategy: Reclusters) -> None:
        """Continue from `state_dict`'s value.

        Raises
        ------
        ValueError
            When it was made with learned clusters and these are assigned, or the reverse.
        """
        if bool(state["learned"]) != self.learned:
            was = "learned" if state["learned"] else "assigned"
            raise ValueError(
                f"setting 'cluster-by' = '{self.settings.cluster_by}': the run to continue has "
                f"{was} clusters; allowed: what it was started with"
            )
        if isinstance(self.map, AssignedClusters):
            self.map.assignment = [int(cluster) for cluster in state["assignment"]]
            return
        self.map = LearnedClusters.from_state({}, state["map"])
        self.clusterings = int(state["clusterings"])
        self._clustered_after = int(state["clustered_after"])
        self._asked_after = {int(key): int(value) for key, value in state["asked_after"].items()}
        self._releases = Counter({int(key): int(n) for key, n in state["releases"].items()})
        self.refused = {int(key): str(reason) for key, reason in state["refused"].items()}
        self.silent = [int(client) for client in state["silent"]]
        self.bytes = int(state["bytes"])
        strategy.recluster(self.map)


def _assignment(settings: Settings) -> list[int]:
    if settings.cluster_by == "by-partition":
        return contiguous(settings.clients, settings.clusters)
    if settings.cluster_by == "random":
        return shuffled(settings.clients, settings.clusters, settings.seed)
    return round_robin(settings.clients, settings.clusters)


def _unclustered(clusters: int) -> LearnedClusters:
    """A map that has learned nothing yet: every client goes to ``client % clusters``."""
    return LearnedClusters({}, [], ClusterResult(clusters=clusters))


def _keyed(values: Mapping[int, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in sorted(values.items())}
