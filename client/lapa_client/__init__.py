"""The robot's side of a policy server: numpy, msgpack and websockets, no torch.

client.py    a connection: send an observation, get a chunk of actions
loop.py      a loop at an even rate: a queue of actions, late answers, smoothing
recorded.py  a dry run on recorded episodes
"""

from lapa_client.client import Answer, Client, Gone, Refused
from lapa_client.loop import Loop, Queue, Report
from lapa_client.recorded import Episode, compare, read_episodes

__all__ = ["Answer", "Client", "Episode", "Gone", "Loop", "Queue", "Refused", "Report", "compare", "read_episodes"]
