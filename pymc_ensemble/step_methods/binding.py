"""How a step method finds its model, and builds the inverse problem and the sampler from it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
import pymc as pm
from numpy.typing import ArrayLike
from pymc.step_methods.compound import BlockedStep, Competence
from pytensor.compile import SharedVariable
from pytensor.graph.basic import Variable
from xarray import DataTree

from pymc_ensemble.log import logger
from pymc_ensemble.problem.checks import given_model, without_missing
from pymc_ensemble.problem.forward_models import estimated_likelihoods
from pymc_ensemble.problem.inverse_problem import InverseProblem
from pymc_ensemble.problem.leaves import Leaves, without_leaves
from pymc_ensemble.problem.points import LayoutVariable, Named, Point, names_of, usual_point
from pymc_ensemble.samplers.kernels import Sampler
from pymc_ensemble.samplers.options import require_flags

from .initial_ensemble import InitialEnsembles, initial_ensembles, require_spread

FLAGS = ("adjust", "rough", "corrected", "allow_subspace", "central")  # options of samplers

SamplerClass = Callable[..., Sampler[Any, Any]]


@dataclass(frozen=True)
class Binding:
    """Model of a step method, with the problem and the sampler built from it.

    `whole` is the model that PyMC samples. `model` lacks the discrete variables on which nothing
    else depends. They are drawn separately.
    """

    whole: pm.Model
    model: pm.Model
    leaves: Leaves
    variables: tuple[Any, ...]
    vars: list[Variable]
    problem: Any
    sampler: Sampler[Any, Any]
    initial: InitialEnsembles | None


class BoundStep(BlockedStep):
    """Step method that gets its model when sampling starts, or earlier.

    Parameters
    ----------
    vars, options, ensemble_size, initial_ensemble, compile_kwargs, model
        As in `EnsembleStep`.
    blocked : bool
        Must be True.
    """

    problem_class: ClassVar[Any] = InverseProblem
    sampler_class: SamplerClass
    needs_spread: ClassVar[bool] = True
    scheme: str | None = None
    default_blocked = True
    tune: bool

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Create a step without a model. The step finds its model when sampling starts."""
        return object.__new__(cls)

    def __getnewargs_ex__(self) -> tuple[tuple, dict]:
        return (), {}

    def __init__(
        self,
        vars: Named | Sequence[Named] | None,
        options: Mapping[str, Any],
        ensemble_size: int | None,
        initial_ensemble: ArrayLike | Mapping[str, ArrayLike] | DataTree | None,
        compile_kwargs: Mapping[str, Any] | None,
        model: pm.Model | None,
        blocked: bool,
    ):
        flags = {name: options[name] for name in FLAGS if options.get(name) is not None}
        require_flags(blocked=blocked, **flags)
        if not blocked:
            raise ValueError(
                f"{type(self).__name__} moves all variables together. Leave out `blocked=False`."
            )
        self.blocked = True
        self._names = None if vars is None else names_of(vars)
        self._ensemble_size = ensemble_size
        self._initial_ensemble = initial_ensemble
        self._compile_kwargs = compile_kwargs
        self._options = options
        self._binding: Binding | None = None
        if model is not None or pm.Model.get_context(error_if_none=False) is not None:
            self._bind(given_model(model))

    @property
    def vars(self) -> list[Variable]:
        """Value variables of the model that is being sampled.

        The model on the context stack counts. So a step can be built before its model, and used
        again with a copy of the model. Worker processes have no such stack. They use the model that
        was pickled with the step.
        """
        model = pm.Model.get_context(error_if_none=False)
        if model is not None:
            bound = self._binding
            if bound is None or bound.whole is not model or bound.variables != _variables(model):
                self._bind(model)
        return [*self._bound.vars, *self._bound.leaves.values]

    @property
    def _bound(self) -> Binding:
        if self._binding is None:
            raise TypeError(
                f"{type(self).__name__} has no model yet. Call `pm.sample` inside `with model:`, "
                f"or build the step with `{type(self).__name__}(model=model)`."
            )
        return self._binding

    @property
    def _averages(self) -> bool:
        """Whether the sampler averages over random outputs, so that a single run may be random."""
        return False

    def _bind(self, whole: pm.Model) -> None:
        if not self._averages and (names := list(estimated_likelihoods(whole))):
            raise ValueError(
                f"`{names[0]}` is a synthetic likelihood. One simulation of it tells little, but "
                f"{type(self).__name__} with these options would take it for the mean. Sample "
                "with pymc_ensemble.sample_synthetic(). One stage of that is "
                "pm.sample(step=EnsembleKalmanSampler(rough=True))."
            )
        model = self._without_leaves(whole)
        vars = self._owned_variables(model)
        problem = self._make_problem(model, vars)
        initial = None
        if self._initial_ensemble is None:
            problem.sample_prior(1, np.random.default_rng(0))  # an improper prior is refused here
        else:
            initial = self._make_initial(self._initial_ensemble, model, problem)
        given = None if initial is None else initial.U.shape[1]
        sampler = self._make_sampler(model, problem, given)
        if initial is not None and self.needs_spread and not self._options.get("allow_subspace"):
            require_spread(initial.U, problem.coordinate_names)
        leaves = Leaves(whole, model)
        self._binding = Binding(
            whole, model, leaves, _variables(whole), vars, problem, sampler, initial
        )

    def _without_leaves(self, model: pm.Model) -> pm.Model:
        """The model without the discrete variables that are drawn separately."""
        return without_leaves(model)

    def _make_problem(self, model: pm.Model, vars: list[Variable]) -> Any:
        return self.problem_class.from_model(model, vars, compile_kwargs=self._compile_kwargs)

    def _make_initial(
        self,
        given: ArrayLike | Mapping[str, ArrayLike] | DataTree,
        model: pm.Model,
        problem: Any,
    ) -> InitialEnsembles:
        """Positions from the initial ensemble that the user has given."""
        return initial_ensembles(given, model, problem.coordinate_names)

    def _make_sampler(self, model: pm.Model, problem: Any, given: int | None) -> Sampler[Any, Any]:
        """Sampler of the problem of a model, for an initial ensemble with `given` members."""
        ensemble_size = self._ensemble_size
        if given is not None and ensemble_size not in (None, given):
            raise ValueError(
                f"initial_ensemble has {given} members, but ensemble_size is {ensemble_size}. "
                "Leave out ensemble_size, or make them equal."
            )
        return self.sampler_class(problem, ensemble_size=given or ensemble_size, **self._options)

    def _owned_variables(self, model: pm.Model) -> list[Variable]:
        """All variables of the model, if they are continuous and were not restricted."""
        step = type(self).__name__
        if discrete := [model.values_to_rvs[v].name for v in model.discrete_value_vars]:
            remedy = without_missing(model) or (
                f"Marginalize `{discrete[0]}` out of the model, or sample with MultiscaleSampler, "
                "which can."
            )
            raise ValueError(
                f"`{discrete[0]}` is discrete, but {step} moves continuous variables only. It "
                "moves all of them at once, so it cannot share a model with another step method. "
                f"{remedy}"
            )
        names = {v: model.values_to_rvs[v].name for v in model.continuous_value_vars}
        if self._names is None:
            return list(names)
        chosen = set(self._names)
        if unknown := chosen - {v.name for v in names} - set(names.values()):
            raise ValueError(
                f"`{min(unknown)}` is not a continuous free variable of the model that is "
                f"sampled. These are {', '.join(f'`{name}`' for name in names.values())}. Leave "
                "out `vars` to sample all of them."
            )
        if left_out := [name for v, name in names.items() if not {v.name, name} & chosen]:
            raise ValueError(
                f"`vars` leaves out `{left_out[0]}`, but {step} must move all continuous "
                "variables: another step method would change the posterior of the whole ensemble. "
                f"Leave out `vars`, or fix the variable: `with pm.do(model, {{{left_out[0]!r}: "
                f"value}}): pm.sample(step={step}())`."
            )
        return list(names)

    @property
    def ensemble_size(self) -> int:
        """Number of particles."""
        return self._bound.sampler.size

    def _tell_of_initial_values(self, layout: Sequence[LayoutVariable], point: Point) -> None:
        """Log that initial values of `pymc.sample` have no effect, if there are any."""
        model = self._bound.model
        usual, ignored = usual_point(model), []
        for variable in layout:
            rv = next(rv for v, rv in model.values_to_rvs.items() if v.name == variable.name)
            given: Any = model.rvs_to_initial_values[rv]
            random = isinstance(given, Variable) or (isinstance(given, str) and given == "prior")
            if not random and not np.allclose(point[variable.name], usual[variable.name]):
                ignored.append(f"`{rv.name}`")
        if ignored:
            start = "at draws of the prior" if self._bound.initial is None else "where it was told"
            logger.warning(
                f"The initial values of {', '.join(ignored)} are not used: an ensemble starts "
                f"{start}. Choose the start with `initial_ensemble`."
            )

    def _with_leaves(self, point: Point, moved: Point) -> Point:
        """A draw with the discrete variables that are drawn separately."""
        leaves = self._bound.leaves
        if not leaves.values:
            return moved
        moved = {**point, **moved}
        return moved if self.tune else moved | leaves.draw(moved)

    def _refuse_company(self) -> None:
        """Refuse other step methods if this one moves all variables of the model."""
        model, step = self._bound.model, type(self).__name__
        if len(self._bound.vars) < len(model.value_vars):
            return
        names = ", ".join(f"`{rv.name}`" for rv in model.free_RVs)
        raise ValueError(
            f"{step} moves all variables of the model, {names}, but there is another step method. "
            "Then the posterior of the other particles would change unnoticed, and stats such as "
            f"`lp` would be wrong. Use only `step={step}()`, or split the variables: "
            "`step=[MultiscaleSampler(vars), other]` with all variables in `vars` that the other "
            "one does not move."
        )

    @staticmethod
    def competence(var: Variable, has_grad: bool) -> Competence:
        """Tell PyMC never to choose this step method on its own."""
        return Competence.INCOMPATIBLE


def _variables(model: pm.Model) -> tuple[Any, ...]:
    """Everything on which the posterior depends. A step has to be bound again after a change."""
    data = [one for one in model.data_vars if isinstance(one, SharedVariable)]  # can change
    shapes = [np.shape(one.get_value(borrow=True)) for one in data]
    return (*model.basic_RVs, *model.potentials, *shapes)


def decided(adjust: bool | None, rough: bool | None) -> tuple[bool | None, bool | None]:
    """Both options, if one is given: a map that is not rough gets a Metropolis test."""
    if adjust is None and rough is not None:
        adjust = not rough
    if adjust is not None and rough is None:
        rough = False
    return adjust, rough


def of_scheme(
    scheme: str, samplers: Mapping[str, SamplerClass], options: Mapping[str, Any]
) -> tuple[SamplerClass, dict[str, Any]]:
    """Sampler of a scheme, with the options that this sampler has.

    Parameters
    ----------
    scheme : str
    samplers : mapping of str to type
        The samplers, dataclasses, by the names of the schemes.
    options : mapping of str to object
        Values of all options that at least one of the samplers has.

    Raises
    ------
    ValueError
        If there is no such scheme, or if its sampler lacks an option that was given.
    """
    if scheme not in samplers:
        names = " or ".join(f'"{name}"' for name in samplers)
        raise ValueError(f"scheme must be {names}, not {scheme!r}.")
    classes: Mapping[str, Any] = samplers
    own = {field.name for field in fields(classes[scheme])}
    defaults = {f.name: f.default for other in classes.values() for f in fields(other)}
    for name, value in options.items():
        if name not in own and value is not None and value is not defaults[name]:
            raise ValueError(
                f'{name}={value!r} is not an option of scheme="{scheme}". Leave it out, or choose '
                "another scheme."
            )
    return samplers[scheme], {name: options[name] for name in options if name in own}
