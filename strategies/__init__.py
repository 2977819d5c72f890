"""What runs on the server between rounds: Flower strategies and their aggregation rules."""

from hlm.state import state_from_bytes, state_to_bytes
from strategies.cluster_map import AssignedClusters, ClusterMap, OneCluster, contiguous, round_robin
from strategies.drop_in import HierarchicalFedAvg, HierarchicalFedNova, HierarchicalFedProx
from strategies.factory import METHODS, build_strategy
from strategies.fednova import FedNova
from strategies.fedprox import FedProx
from strategies.flower_rule import FlowerRule
from strategies.hierarchical import Hierarchical
from strategies.local_methods import FedAvgSteps, LocalMethod
from strategies.node_clusters import NodeClusters, ReplyClusters
from strategies.privacy import CentralPrivacy
from strategies.record_options import RecordOptions
from strategies.records import Failure, NotEnoughNodes, RoundFailed, RoundRecord
from strategies.rules import RULES, AggregationRule, build_rule
from strategies.scaffold import Scaffold
from strategies.validation import Refusal, ReplySchema, Update, validate_replies, validate_reply

__all__ = [
    "METHODS",
    "RULES",
    "AggregationRule",
    "AssignedClusters",
    "CentralPrivacy",
    "ClusterMap",
    "Failure",
    "FedAvgSteps",
    "FedNova",
    "FedProx",
    "FlowerRule",
    "Hierarchical",
    "HierarchicalFedAvg",
    "HierarchicalFedNova",
    "HierarchicalFedProx",
    "LocalMethod",
    "NodeClusters",
    "NotEnoughNodes",
    "OneCluster",
    "RecordOptions",
    "Refusal",
    "ReplyClusters",
    "ReplySchema",
    "RoundFailed",
    "RoundRecord",
    "Scaffold",
    "Update",
    "build_rule",
    "build_strategy",
    "contiguous",
    "round_robin",
    "state_from_bytes",
    "state_to_bytes",
    "validate_replies",
    "validate_reply",
]
