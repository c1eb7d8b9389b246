"""`flwr run`: the run as a Flower app, whose overrides are one string, as on fedser's command line.

The server's half is `simulation=deploy` behind the grid that Flower hands it; the clients' half is what `fedser-client`
is, on stock SuperNodes whose `--node-config` names dataset, root and speaker. Both are of the fedser that is installed
where they run, as components and versions are compared anyway: the app that `flwr run` sends holds no code.
"""

import functools
import logging
import shlex

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedser import compose, run
from fedser.deployment.client import Client
from fedser.deployment.vetting import ASKED, Vetting
from fedser.errors import InputError
from fedser.federation.client_app import CLIENT_FAILED

server = ServerApp()
client = ClientApp()


@server.main()
def serve(grid: Grid, context: Context) -> None:
    """The run that `overrides` compose to; its folder is `outputs/…` where the SuperLink was started."""
    logging.getLogger("fedser").setLevel(logging.WARNING)
    overrides = shlex.split(str(context.run_config["overrides"]))
    run(compose(["simulation=deploy", "logger=none", *overrides]), grid=grid)


def answer(message: Message, context: Context) -> Message:
    """The reply of the client that this node is; an error where its `--node-config` does not say which."""
    try:
        known = {key: str(context.node_config[key]) for key in ("dataset", "root", "speaker")}
        own = _client(**known, device=str(context.node_config.get("device", "cpu")))
    except KeyError as error:
        told = '--node-config \'dataset="…" root="…" speaker="…"\''
        return Message(Error(CLIENT_FAILED, f"a node does not say its {error.args[0]}: {told}"), reply_to=message)
    except InputError as error:
        return Message(Error(CLIENT_FAILED, f"client '{known['speaker']}': {error}"), reply_to=message)
    return own(message, context)


@functools.cache
def _client(dataset: str, root: str, speaker: str, device: str) -> Client:
    own = [f"dataset={dataset}", f"dataset.root={root}", "simulation=serial", f"simulation.device={device}"]
    return Client(speaker, Vetting(speaker, [*own, "logger=none"]))


for asked in ASKED:
    kind, _, action = asked.partition(".")
    getattr(client, kind)(*filter(None, [action]))(answer)
