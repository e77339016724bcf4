"""Step methods of `pymc.sample`: ensembles of particles as draws."""
