"""Integrators: of layers, of stochastic equations, and of scalar fields once and for all."""

from .accepted_steps import AcceptedSteps as AcceptedSteps
from .burgers import (
    burgers as burgers,
    burgers_slope as burgers_slope,
    total_variation as total_variation,
)
from .chebyshev import (
    ChebyshevFlowMap as ChebyshevFlowMap,
    interval_flow_map as interval_flow_map,
)
from .convection_diffusion import (
    convection_diffusion as convection_diffusion,
    spectral_gradient as spectral_gradient,
)
from .feynman_kac import (
    AbstractNoise as AbstractNoise,
    ConstantNoise as ConstantNoise,
    Expectation as Expectation,
    RelativeNoise as RelativeNoise,
    diffusion_path as diffusion_path,
    feynman_kac as feynman_kac,
)
from .flow_map import AbstractFlowMap as AbstractFlowMap
from .fourier import FourierFlowMap as FourierFlowMap, periodic_flow_map as periodic_flow_map
from .grid_steps import GridSteps as GridSteps
from .layer_steps import (
    AbstractLayerStep as AbstractLayerStep,
    Composition as Composition,
    NeumannSeries as NeumannSeries,
    PublishedMidpoint as PublishedMidpoint,
    RungeKutta as RungeKutta,
)
from .layered import (
    apply_layers as apply_layers,
    integrate_layers as integrate_layers,
    layer_states as layer_states,
    layer_step as layer_step,
    layered_drift as layered_drift,
    stack_layers as stack_layers,
)
from .learned_rk2 import LearnedRK2 as LearnedRK2, ShuOsher as ShuOsher
from .multilevel import (
    Level as Level,
    MultilevelExpectation as MultilevelExpectation,
    multilevel_feynman_kac as multilevel_feynman_kac,
)
from .reversible import (
    integrate_reversible as integrate_reversible,
    invert_reversible as invert_reversible,
)
from .ssprk import (
    SSPRK22 as SSPRK22,
    SSPRK33 as SSPRK33,
    SSPRK43 as SSPRK43,
    SSPRK104 as SSPRK104,
)
from .stability import (
    growth_bound as growth_bound,
    growth_ratios as growth_ratios,
    jacobian_norm as jacobian_norm,
    logarithmic_norm as logarithmic_norm,
    perturbation_growth as perturbation_growth,
)
