"""Networks: `model, state = eqx.nn.make_with_state(odejax.models.X)(image_shape, ..., key=key)`.

All are called alike: `model(x, state, key=key) -> (logits, state)`, x (h, w, c) in [0, 1].
"""

from .augmented_ode import AugmentedODENet as AugmentedODENet
from .blocks import (
    Conv as Conv,
    Head as Head,
    ImageShape as ImageShape,
    ResidualField as ResidualField,
    Stem as Stem,
)
from .cnn import CNN as CNN
from .conv_ode import ConvODENet as ConvODENet
from .convolution import conv2d as conv2d
from .dense_ode import (
    AbstractDenseField as AbstractDenseField,
    DenseODENet as DenseODENet,
    HopfieldField as HopfieldField,
    TanhField as TanhField,
)
from .enresnet import EnResNet as EnResNet, MixedEnResNet as MixedEnResNet
from .fractalnet import FractalField as FractalField, FractalNet as FractalNet
from .interval_init import interval_init as interval_init
from .invariant_layers import (
    MassLayer as MassLayer,
    SphereLayer as SphereLayer,
    SymplecticLayer as SymplecticLayer,
    VolumeLayer as VolumeLayer,
)
from .invariants import (
    HamiltonianNet as HamiltonianNet,
    MassPreservingNet as MassPreservingNet,
    SpherePreservingNet as SpherePreservingNet,
    VolumePreservingNet as VolumePreservingNet,
)
from .lipschitz import LipschitzNet as LipschitzNet
from .lipschitz_layers import (
    GradientFlow as GradientFlow,
    MinMax as MinMax,
    Residual as Residual,
    TwoFlows as TwoFlows,
)
from .mlp import MLP as MLP
from .neural_sde import NeuralSDENet as NeuralSDENet
from .nmode import NmODE as NmODE, NmODENet as NmODENet, sin_squared as sin_squared
from .normalised import Normalised as Normalised
from .norms import BatchNorm as BatchNorm, GroupNorm as GroupNorm, NoNorm as NoNorm
from .ode_net import AbstractODENet as AbstractODENet
from .ode_solve import ODESolve as ODESolve
from .operators import (
    ConvOperator as ConvOperator,
    DenseOperator as DenseOperator,
    OrthogonalOperator as OrthogonalOperator,
    UnitRows as UnitRows,
)
from .orthogonal import OrthogonalNet as OrthogonalNet
from .plug_in import (
    BeforeClassifier as BeforeClassifier,
    insert_before_classifier as insert_before_classifier,
)
from .polynet import PolyNet as PolyNet
from .preact_resnet import PreActResNet as PreActResNet, WideResNet as WideResNet
from .resnet import ResNet as ResNet, SSPNet as SSPNet
from .revnet import RevNet as RevNet
from .spectral import (
    circular_conv_smallest_square as circular_conv_smallest_square,
    conv_norm_bound as conv_norm_bound,
    matrix_norm_bound as matrix_norm_bound,
    matrix_smallest_square as matrix_smallest_square,
)
from .splitting import GradientLayer as GradientLayer, SplitLayer as SplitLayer
from .step_rules import (
    FlexibleSteps as FlexibleSteps,
    NonExpansiveSteps as NonExpansiveSteps,
    PrescribedSteps as PrescribedSteps,
)
from .structured import (
    NaivelyConstrained as NaivelyConstrained,
    Structured as Structured,
    StructuredNet as StructuredNet,
    Unconstrained as Unconstrained,
)
from .torch_weights import from_torch as from_torch
