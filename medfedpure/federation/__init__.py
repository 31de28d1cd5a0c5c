"""The bridge to Flower: one ServerApp and one ClientApp for any personalization strategy.

Importing this package imports flwr, after switching off what Flower would send or fetch by itself;
nothing else in medfedpure imports it.
"""

from medfedpure.federation import environment as _environment  # noqa: F401 - sets switches before flwr loads
from medfedpure.federation.client import ClientSide, SeededModel, make_client_app
from medfedpure.federation.deployment import deployed_client_app, deployed_server_app
from medfedpure.federation.grid import InProcessGrid
from medfedpure.federation.local import LocalWork, WorkLoop, WorkSide
from medfedpure.federation.records import FederatedResult, FederationConfig, RoundRecord, Site
from medfedpure.federation.run import federate, federate_component
from medfedpure.federation.server import RoundLoop, ServerSide, make_server_app
from medfedpure.federation.state import PrivateStore, StaleStateError

__all__ = [
    "ClientSide",
    "FederatedResult",
    "FederationConfig",
    "InProcessGrid",
    "LocalWork",
    "PrivateStore",
    "RoundLoop",
    "RoundRecord",
    "SeededModel",
    "ServerSide",
    "Site",
    "StaleStateError",
    "WorkLoop",
    "WorkSide",
    "deployed_client_app",
    "deployed_server_app",
    "federate",
    "federate_component",
    "make_client_app",
    "make_server_app",
]
