"""Where the members of a batch are evaluated: here, in processes, in an executor, on a cluster."""
