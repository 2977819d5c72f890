"""In place of Flower's own FedAvg and FedProx: the same arguments, and `clusters`.

A stock Flower app changes the import and the class, nothing else: its replies (one ArrayRecord,
one MetricRecord with ``num-examples``) are what these strategies take.
"""

from __future__ import annotations

from inspect import signature
from typing import Unpack

from strategies.factory import METHODS, build_method
from strategies.hierarchical import Hierarchical
from strategies.node_clusters import Clusters, cluster_map_of
from strategies.options import DropInOptions, Options, refuse_others, split
from strategies.record_options import MetricsFunction, RecordOptions


class HierarchicalFedAvg(Hierarchical):
    """FedAvg in two tiers: eq. 7 inside clusters, the plain mean of clusters (eq. 8) over them.

    With one cluster it is Flower's FedAvg to the last rounding (sums are made in float64, and
    arrays keep their dtypes), except that bad replies (NaN, infinite, of another shape, of a
    weight below 0) are refused, named in the log and counted in `history`; that a leg of which no
    reply could be used ends the run with the reason; and that waiting for nodes ends, after
    `node_wait_s`. An app without an evaluate function sets ``fraction_evaluate=0``.

    The server holds the global model and one for each cluster, as float64, and beside the replies
    that Flower hands it at once the one that is being added up; `history` holds numbers alone.

    Parameters
    ----------
    fraction_train, fraction_evaluate, min_train_nodes, min_evaluate_nodes, min_available_nodes
        As in Flower's `FedAvg`.
    weighted_by_key, arrayrecord_key, configrecord_key
        The same.
    train_metrics_aggr_fn, evaluate_metrics_aggr_fn
        The same.
    clusters : int, str, mapping of node id to cluster, or ClusterMap, optional
        So many clusters, nodes being dealt in turn by their ids; the name of a metric of the
        training replies, a whole number by which clients name their cluster; a table; or a map
        of your own. By default one cluster, which is flat like FedAvg; the log says so. What
        stands in a node's config the server learns from replies only.
    options
        Further ones of `Hierarchical`: rules, personalisation, bounds, privacy, seed and others.

    Raises
    ------
    ValueError
        On an argument outside its range, naming it.
    """

    _name = "fedavg"

    def __init__(
        self,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsFunction | None = None,
        evaluate_metrics_aggr_fn: MetricsFunction | None = None,
        *,
        clusters: Clusters | None = None,
        **options: Unpack[DropInOptions],
    ) -> None:
        own, rest = split(options)
        refuse_others(own, METHODS[self._name][1])
        known = signature(HierarchicalFedAvg).parameters
        refuse_others(rest, DropInOptions.__annotations__, known)
        settings: Options = {
            "node_wait_s": 3600.0,
            "method": build_method(self._name, **own),
            **rest,
            "fraction_train": fraction_train,
            "fraction_evaluate": fraction_evaluate,
            "min_train_nodes": min_train_nodes if fraction_train else 0,
            "min_evaluate_nodes": min_evaluate_nodes if fraction_evaluate else 0,
            "min_nodes": min_available_nodes,
            "records": RecordOptions(
                arrayrecord_key,
                configrecord_key,
                weighted_by_key,
                train_metrics_aggr_fn,
                evaluate_metrics_aggr_fn,
            ),
        }
        super().__init__(cluster_map_of(clusters), **settings)


class HierarchicalFedProx(HierarchicalFedAvg):
    """FedProx in two tiers; clients read ``proximal-mu`` from the config, as with Flower's own.

    Parameters
    ----------
    proximal_mu : float
        mu >= 0, by default 0.1; 0 is FedAvg.
    arguments
        Those of `HierarchicalFedAvg`.
    """

    _name = "fedprox"


class HierarchicalFedNova(HierarchicalFedAvg):
    """FedNova in two tiers: clients that take unequal numbers of steps do not bias the mean.

    A client's training reply needs one metric more, ``local-steps``: the steps its optimiser took.
    The accepted replies of a round are all in memory at once, as float64.

    Parameters
    ----------
    max_local_steps : int
        A reply that claims more is refused; by default 100,000.
    arguments
        Those of `HierarchicalFedAvg`.
    """

    _name = "fednova"
