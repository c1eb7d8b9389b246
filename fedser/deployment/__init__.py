"""Real clients: one process per client, each with its own folder, behind a Flower SuperLink.

flower     Flower through the back door: this process as ServerApp, as ClientApp
grid       the clients of a run by name, wherever they are connected; deadlines
roster     what clients say before a run begins, and what the server makes of it
vetting    what a client lets a server ask
server     `simulation=deploy`
client     the command `fedser-client`
"""
