"""What can be changed in a network, and the network changed: `trace` reads widths and depths, `resize` writes them."""

from htas.graph.arch import Arch
from htas.graph.network import Network, Node, Segment, Site, Use
from htas.graph.order import ordered
from htas.graph.resize import resize
from htas.graph.trace import UNTRAINED, trace

__all__ = ["UNTRAINED", "Arch", "Network", "Node", "Segment", "Site", "Use", "ordered", "resize", "trace"]
