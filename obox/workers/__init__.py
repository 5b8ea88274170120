"""`[server] workers = N`: N backends as child processes, and a proxy in front of them.

See docs/cluster.md, "Workers". `supervisor.Supervisor` is the process that an operator
starts, and `child.run` is a worker. A backend without workers does not import this
room.
"""
