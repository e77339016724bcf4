"""Workers for the members of a batch: this process, processes, an executor, a cluster."""
