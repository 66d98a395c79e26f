"""Real servers, real sockets, real faults: what the pool promises when the network or the server does not."""
