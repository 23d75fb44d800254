"""Secure aggregation: the owner learns the sum of the clients' updates and nothing else about any of them.

The roles, each a state machine without input or output: a client is `hushtune_common.secagg.member`, the coordinator
`hushtune_common.secagg.relay`, the owner `hushtune_common.secagg.aggregator`. What they say to each other is in ``messages``, how
a change of weights becomes words that can be added in ``grid``, who masks with whom in ``graph``, what everybody refuses in
``admission``. ``messages``, ``graph``,
``record`` and ``relay`` need no cryptography. `hushtune_common.secagg.identity` signs with a process's certificate.
"""
