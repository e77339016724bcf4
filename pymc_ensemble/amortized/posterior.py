"""A posterior for any data, learned from simulations of the model."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
import pymc as pm
import xarray as xr
from numpy.typing import ArrayLike

from pymc_ensemble.diagnosis.facts import variables_of
from pymc_ensemble.diagnosis.stand_ins import FAMILIAR
from pymc_ensemble.diagnosis.uniformity import Coverage, require_probability
from pymc_ensemble.log import number, percent
from pymc_ensemble.problem.checks import given_generator, given_model, quoted
from pymc_ensemble.samplers.options import require_counts, require_given_counts
from pymc_ensemble.samplers.weights import LEVEL

from . import calibration, refining, storage
from .generating import Generator
from .learned import Learned
from .results import result_of

__all__ = ["AmortizedPosterior"]

Data = Mapping[str, ArrayLike]


class AmortizedPosterior(Learned):
    """Result of `amortize`: the posterior for any data of the model.

    Attributes
    ----------
    method : {"posterior", "ratio", "diffusion"}
        Whether the posterior itself was learned, or its ratio to the prior, or a map from noise to
        draws.
    conservative : bool
        Whether the ratio was balanced, so that posteriors are rather too wide than too narrow.
    members : int
        Number of networks, which are averaged.
    simulations, failed : int
        Number of simulations for the training, and of failed ones, which were left out.
    history : ndarray of shape (passes, members)
        Loss of the simulations that each member held back, after each pass over the others.
    tested : {"calibrated", "overconfident", "conservative"} or None
        Verdict of the last test of `coverage`.
    model : pymc.Model
        The model.
    """

    def sample(
        self,
        data: Data | None = None,
        draws: int = 1000,
        chains: int = 4,
        random_seed: Any = None,
    ) -> xr.DataTree:
        """Draw from the posterior given data, without a further simulation.

        Parameters
        ----------
        data : mapping of str to array_like, optional
            Values of the observed variables, by name; those that the model observes by default.
        draws, chains : int, default 1000 and 4
            Draws of each chain, and chains. Draws are independent. With
            ``method="ratio"`` a chain is an ensemble of walkers on the prior times the learned
            ratio; each move meets a Metropolis test.
        random_seed : int, Generator or None
            Seed of the draws.

        Returns
        -------
        DataTree
            ``posterior``, ``observed_data``, and ``sample_stats`` with the log density ``lp`` of
            the estimate in unconstrained coordinates (up to a constant for ``method="ratio"``; NaN
            for ``method="diffusion"``, which has no density).
            The attributes of ``posterior`` are the ``surprise`` of the data, and ``outside``, the
            share of draws of the estimate that lay outside the prior and were rejected.

        Raises
        ------
        ValueError
            If data are missing, have another shape or are not finite.
        RuntimeError
            If the estimate lies outside the prior.

        Warns
        -----
        UserWarning
            If no simulation looks like the data.
        """
        require_given_counts(1, draws=draws, chains=chains)
        rng = given_generator(random_seed, "random_seed")
        given = self.given(data)
        surprise = self._surprise(given)
        if surprise > FAMILIAR:
            warnings.warn(
                f"No simulation looks like these data: {percent(surprise)} of the simulations are "
                "nearer to the other simulations. The estimate has not learned from data like "
                "these. Check the model and the data. Or sample, if there is a likelihood: "
                "pm.sample(step=pymc_ensemble.EnsembleKalmanSampler()).",
                stacklevel=2,
            )
        [drawn] = self.estimate.draw(self.scaling(given), draws, chains, rng)
        options = {"surprise": surprise, "outside": float(drawn.outside), "coverage": self.tested}
        told = {name: value for name, value in options.items() if value is not None}
        facts = replace(
            self.facts, options=self.facts.options | told, particles=int(drawn.particle.max()) + 1
        )
        attrs = {
            "surprise": surprise,
            "outside": float(drawn.outside),
            "simulations": self.simulations,
        }
        observed = {name: values[0] for name, values in given.items()}
        return result_of(self.generator, facts, drawn, observed, attrs)

    def surprise(self, data: Data | None = None) -> float:
        """Compare data with all simulations: how unusual are they.

        Parameters
        ----------
        data : mapping of str to array_like, optional
            Values of the observed variables, by name; those that the model observes by default.

        Returns
        -------
        float
            Share of simulations that are nearer to the others: the larger of two ranks, of the
            Mahalanobis distance from the mean, and of the distance from the nearest simulations. It
            is uniform for data of the model. Above 0.99 `sample` warns.
        """
        return self._surprise(self.given(data))

    def coverage(
        self,
        simulations: int | xr.Dataset = 200,
        *,
        model: pm.Model | None = None,
        draws: int = 1000,
        random_seed: Any = None,
        probability: float = LEVEL,
    ) -> Coverage:
        """Test on simulations whether credible regions have their nominal coverage.

        Parameters
        ----------
        simulations : int or Dataset, default 200
            Number of new simulations; or simulations that the training has not used, for example a
            part of a result of `simulations` that you have kept back.
        model : pymc.Model, optional
            Another model for the new simulations. It shows the effect of another prior or simulator
            on the estimate. The verdict is then not kept.
        draws : int, default 1000
            Number of draws for each simulation.
        random_seed : int, Generator or None
            Seed of the simulations, and of the draws.
        probability : float, default 0.95
            Probability of the confidence bands.

        Returns
        -------
        Coverage
            Result as of `pymc_ensemble.coverage`. ``method="diffusion"`` has no density; its
            regions of highest density come from a Gaussian fit to the draws. Later results carry
            the verdict, for `diagnose`.
        """
        if not isinstance(simulations, xr.Dataset):
            require_given_counts(2, simulations=simulations)
        require_given_counts(10, draws=draws)
        require_probability(probability)
        rng = given_generator(random_seed, "random_seed")
        other = model is not None and given_model(model) is not self.model
        generator = Generator(model) if model is not None and other else self.generator
        if generator.names != self.generator.names or generator.shapes != self.generator.shapes:
            raise ValueError(
                "`model` has other parameters or data than the model that was simulated, or "
                f"another order of them. It must have {quoted(self.generator.names)} and "
                f"{quoted(self.generator.shapes)}."
            )
        result = calibration.test(self, generator, simulations, draws, rng, probability)
        if not other:
            self.tested = result.verdict
        return result

    def refine(
        self,
        data: Data | None = None,
        evaluations: int = 200,
        model: pm.Model | None = None,
        random_seed: Any = None,
        *,
        by: refining.Way = "weights",
        draws: int | None = None,
    ) -> xr.DataTree:
        """Correct draws by the true likelihood, with importance weights.

        Weights need a density, and ``method="diffusion"`` has none. Kernels around its draws then
        give a density, and the evaluated points are draws of the kernels.

        Parameters
        ----------
        data : mapping of str to array_like, optional
            Values of the observed variables, by name; those that the model observes by default.
        evaluations : int, default 200
            Number of draws, each evaluated once; at least 50.
        model : pymc.Model, optional
            A model with the same parameters and data, such as a finer one; by default the one that
            was simulated.
        random_seed : int, Generator or None
            Seed of the draws and of the resampling.
        by : {"weights", "equation", "map"}, default "weights"
            How draws are made from the weights. With "weights" the points are resampled. With
            "equation" the reverse equation of a diffusion moves noise to the points, to each with
            the probability of its weight. With "map" a network has learned this equation [2]_. The
            equation adds only chance to the weights. The map smooths, also between separate modes.
        draws : int, optional
            Number of returned draws; by default `evaluations`.

        Returns
        -------
        DataTree
            Draws of one chain. ``lp`` is the log density of the model; for draws of the equation or
            the map it is NaN. The attributes of ``posterior`` are the Pareto ``khat`` [1]_ of the
            weights, and their ``efficiency``, the effective share of the draws.

        Raises
        ------
        RefinementError
            If k-hat is above 0.7, so that the weights are unreliable. It is a ValueError that keeps
            all evaluated points as its `draws`. A sampler can continue from them.
        ValueError
            If the model has no likelihood, or a random one.

        References
        ----------
        .. [1] Vehtari, A., Simpson, D., Gelman, A., Yao, Y. and Gabry, J. (2024). Pareto smoothed
           importance sampling. Journal of Machine Learning Research, 25(72), 1-58.
           https://arxiv.org/abs/1507.02646
        .. [2] Tatsuoka, C., Yang, M., Xiu, D. and Zhang, G. (2025). Multi-fidelity parameter
           estimation using conditional diffusion models. https://arxiv.org/abs/2504.01894
        """
        require_given_counts(50, evaluations=evaluations)
        draws = evaluations if draws is None else draws
        require_counts(1, draws=draws)
        if by not in refining.WAYS:
            raise ValueError(f'by={by!r} must be "weights", "equation" or "map".')
        rng = given_generator(random_seed, "random_seed")
        given = self.given(data)
        fine = self.model if model is None else given_model(model)
        if variables_of(fine) != variables_of(self.model):
            raise ValueError(
                "`model` differs from the model that was simulated in its free variables, their "
                "shapes, or the supports of their priors. All of these must be the same."
            )
        proposed = self.estimate.propose(self.scaling(given), evaluations, rng)
        observed = {name: values[0] for name, values in given.items()}
        return refining.refined(self, fine, proposed, observed, rng, by, draws)

    def save(self, path: str | PathLike) -> None:
        """Save everything except the model, as arrays and text. `load_amortized` reads the file.

        Parameters
        ----------
        path : path-like
            A file; ``.npz`` is the usual ending.
        """
        storage.save(self, path)

    def given(self, data: Data | None) -> dict[str, np.ndarray]:
        """Values of all observed variables, each of shape (1, ...). Other data are refused."""
        shapes = self.generator.shapes
        if data is None:
            data = self.generator.own_data
        if not isinstance(data, Mapping):
            raise TypeError(
                "`data` must be a mapping from the names of observed variables to their values, "
                f"such as {{{next(iter(shapes))!r}: ...}}, not {type(data).__name__}."
            )
        if missing := [name for name in shapes if name not in data]:
            raise ValueError(
                f"`data` has no {quoted(missing)}. Pass values of all observed variables."
            )
        if unknown := [name for name in data if name not in shapes]:
            raise ValueError(
                f"`data` has {quoted(unknown)}, which the model does not observe. The model "
                f"observes {quoted(shapes)}."
            )
        values = {name: _numbers(name, data[name]) for name in shapes}
        for name, shape in shapes.items():
            if values[name].shape != shape:
                raise ValueError(
                    f"The data of `{name}` have the shape {values[name].shape}, but those of the "
                    f"simulations {shape}. Data of another shape need their own simulations: "
                    "pymc_ensemble.simulations."
                )
            if not np.isfinite(values[name]).all():
                raise ValueError(
                    f"The data of `{name}` are not finite. If entries are missing, simulate a "
                    "model without these entries."
                )
        return {name: array[None] for name, array in values.items()}

    def _surprise(self, given: Mapping[str, np.ndarray]) -> float:
        if self.scaling.impossible(given)[0]:
            return 1.0
        return float(self.familiarity.surprise(self.scaling(given))[0])

    def __str__(self) -> str:
        loss = number(float(self.history.min(0).mean()), ".3f")
        tested = "not tested" if self.tested is None else self.tested
        return (
            f"amortized {self.method} of {len(self.generator.names)} parameters, given "
            f"{self.scaling.size} data, from {self.simulations} simulations ({self.failed} others "
            f"failed): {self.members} networks, loss {loss}, {tested}"
        )


def _numbers(name: str, values: Any) -> np.ndarray:
    """Data as an array of numbers."""
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The data of `{name}` are not an array of numbers ({error}). Pass what the model "
            "would observe."
        ) from error
