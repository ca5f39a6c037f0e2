# pyright: reportMissingImports=false
"""What a convolutional neural ODE costs: y' = f(y), f norm-ReLU-conv twice, 64 channels, 7 x 7.

    python -m benchmarks.neural_ode

y(1) and its gradient by the weights and by y(0), batch 128, Dopri5 at rtol = atol = 1e-3, on the
same weights in one run: odejax (`AcceptedSteps`), Diffrax's default adjoint on the same
convolutions, and, where the extra `peers` is installed, torchdiffeq's `odeint` and `odeint_adjoint`
and torchode. For each also

- its evaluations of the field (of the batch: where every example has its own steps, as in Diffrax
  and torchode, those of the one with the most),
- "x cost": the time over evaluations x 1 (forward) or x 3 (gradient) x the time of one evaluation
  in the same library, which is the least that differentiating those evaluations costs,
- the largest error of the gradient by the weights, relative to its largest entry, against a
  float64 solve at 1e-6,
- what is held: for JAX all temporary memory of the compiled program, for PyTorch what autograd
  holds at most.

The goals: faster than the fastest peer, and at most 1.4 x cost. Writes
`benchmarks/results/neural_ode.json`.
"""

import dataclasses
import importlib.metadata
import importlib.util
import sys
import types
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from odejax._batch import vmap_batch
from odejax.evaluation import provenance, save_result
from odejax.models import GroupNorm, ODESolve, ResidualField
from odejax.solvers import AcceptedSteps

from ._timing import medians

KIND = "benchmarks.neural_ode"
RESULT = Path(__file__).parent / "results" / "neural_ode.json"
SHAPE, BATCH, TOLERANCE, ROUNDS = (7, 7, 64), 128, 1e-3, 5
STAGES = 6  # of Dopri5: its seventh is the next step's first


@dataclasses.dataclass
class Job:
    """A candidate: y(1), the gradient, one evaluation, and what is known of its cost."""

    forward: Callable
    gradient: Callable  # -> by y(0), by the kernels
    evaluation: Callable
    evaluations: int
    held: int  # bytes


def problem():
    """The field, y(0) and the direction in which y(1) is differentiated."""
    keys = jax.random.split(jax.random.key(0), 3)
    residual, _ = eqx.nn.make_with_state(ResidualField)(SHAPE[-1], GroupNorm, key=keys[0])
    y0 = jax.random.normal(keys[1], (BATCH, *SHAPE))
    return residual, y0, jax.random.normal(keys[2], y0.shape)


def our_job(adjoint, residual, y0, direction) -> Job:
    ode = ODESolve(stepsize_controller=diffrax.PIDController(TOLERANCE, TOLERANCE), adjoint=adjoint)
    return _jax_job(ode, residual, y0, direction)


def _jax_job(ode, residual, y0, direction) -> Job:
    params, static = eqx.partition(residual, eqx.is_inexact_array)
    no_state = eqx.nn.State(residual)

    def field(t, y, params):
        return eqx.combine(params, static)(y, no_state)[0]

    def solve(params, y):
        return ode(field, y, params)

    def end(params, y0):
        return vmap_batch(lambda y: solve(params, y).ys[0])(y0)

    def loss(params, y0, direction):
        return jnp.sum(end(params, y0) * direction)

    forward = jax.jit(end)
    gradient = jax.jit(jax.grad(loss, (1, 0)))
    evaluation = jax.jit(lambda params, y: jax.vmap(lambda y: field(0.0, y, params))(y))
    steps = jax.jit(jax.vmap(solve, (None, 0)))(params, y0).stats["num_steps"]
    memory = gradient.lower(params, y0, direction).compile().memory_analysis()
    assert memory is not None

    def kernels():
        of_y0, of_params = gradient(params, y0, direction)
        return of_y0, [conv.kernel for conv in of_params.convs]

    return Job(
        partial(forward, params, y0),
        kernels,
        partial(evaluation, params, y0),
        1 + STAGES * int(steps.max()),
        memory.temp_size_in_bytes,
    )


def reference(residual, y0, direction):
    """The gradient of a float64 solve at 1e-6."""
    with jax.enable_x64(True):
        residual, y0, direction = jax.tree.map(
            lambda a: a.astype(jnp.float64) if eqx.is_inexact_array(a) else a,
            (residual, y0, direction),
        )
        ode = ODESolve(
            stepsize_controller=diffrax.PIDController(1e-6, 1e-6), adjoint=AcceptedSteps()
        )
        of_y0, kernels = _jax_job(ode, residual, y0, direction).gradient()
        return np.asarray(of_y0), [np.asarray(kernel) for kernel in kernels]


def peer_jobs(residual, y0, direction) -> dict[str, Job]:
    import torch
    import torchdiffeq

    class TensorType:
        def __class_getitem__(cls, item):
            return torch.Tensor

    # torchode needs it for annotations alone, and it does not import under current PyTorch.
    annotations = types.ModuleType("torchtyping")
    vars(annotations).update(TensorType=TensorType, is_float=None)
    sys.modules.setdefault("torchtyping", annotations)
    import torchode

    class Field(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norms, self.convs = torch.nn.ModuleList(), torch.nn.ModuleList()
            for norm, conv in zip(residual.norms, residual.convs, strict=True):
                channels = len(norm.scale)
                self.norms.append(torch.nn.GroupNorm(norm.groups, channels, norm.eps))
                layer = torch.nn.Conv2d(channels, channels, 3, padding=1)
                kernel = torch.tensor(np.asarray(conv.kernel)).permute(3, 2, 0, 1)
                layer.weight.data = kernel.contiguous(memory_format=torch.channels_last)
                layer.bias.data = torch.tensor(np.asarray(conv.bias))
                self.convs.append(layer)
            self.evaluations = 0

        def forward(self, t, y):
            self.evaluations += 1
            for norm, conv in zip(self.norms, self.convs, strict=True):
                y = conv(torch.relu(norm(y)))
            return y

    field = Field()

    def tensor(array):
        array = torch.tensor(np.asarray(array)).permute(0, 3, 1, 2)
        return array.contiguous(memory_format=torch.channels_last)

    start, seed = tensor(y0), tensor(direction)
    times = torch.tensor([0.0, 1.0])
    settings = {"rtol": TOLERANCE, "atol": TOLERANCE, "method": "dopri5"}

    def flat_field(t, y):
        return field(t, y.view(start.shape)).flatten(1)

    def by_torchode(y0):
        term = torchode.ODETerm(flat_field)
        controller = torchode.IntegralController(atol=TOLERANCE, rtol=TOLERANCE, term=term)
        solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), controller)
        ivp = torchode.InitialValueProblem(y0=y0.flatten(1), t_eval=times.repeat(BATCH, 1))
        return solver.solve(ivp).ys[:, -1].view(start.shape)

    solvers = {
        "torchdiffeq odeint": lambda y0: torchdiffeq.odeint(field, y0, times, **settings)[-1],
        "torchdiffeq odeint_adjoint": lambda y0: torchdiffeq.odeint_adjoint(
            field, y0, times, **settings
        )[-1],
        "torchode": by_torchode,
    }

    def job(solve) -> Job:
        def gradient():
            y0 = start.detach().clone().requires_grad_()
            kernels = [conv.weight for conv in field.convs]
            of_y0, *of_kernels = torch.autograd.grad((solve(y0) * seed).sum(), [y0, *kernels])
            kernels = [kernel.permute(2, 3, 1, 0).numpy() for kernel in of_kernels]
            return of_y0.permute(0, 2, 3, 1).numpy(), kernels

        @torch.no_grad()
        def forward():
            return solve(start)

        @torch.no_grad()
        def evaluation():
            return field(0.0, start)

        field.evaluations = 0
        forward()
        evaluations = field.evaluations
        held = Held()
        with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda saved: saved.tensor):
            gradient()
        return Job(forward, gradient, evaluation, evaluations, held.most)

    return {name: job(solve) for name, solve in solvers.items()}


class Held:
    """The most bytes that autograd held at once; a storage that it saved twice counts once."""

    def __init__(self):
        self.times, self.now, self.most = Counter(), 0, 0

    def pack(self, tensor):
        return Saved(tensor, self)

    def add(self, storage, times: int):
        before = self.times[storage.data_ptr()]
        self.times[storage.data_ptr()] += times
        self.now += storage.nbytes() * ((before + times > 0) - (before > 0))
        self.most = max(self.most, self.now)


class Saved:
    """A saved tensor, which autograd lets go of when it is through with it."""

    def __init__(self, tensor, held: Held):
        # Detached: an output would hold the graph that holds it, for ever.
        self.tensor, self.held = tensor.detach(), held
        held.add(tensor.untyped_storage(), 1)

    def __del__(self):
        self.held.add(self.tensor.untyped_storage(), -1)


def main():
    origin = provenance(0)
    residual, y0, direction = problem()
    jobs = {
        "odejax": our_job(AcceptedSteps(), residual, y0, direction),
        "Diffrax's adjoint": our_job(diffrax.RecursiveCheckpointAdjoint(), residual, y0, direction),
    }
    if importlib.util.find_spec("torchdiffeq"):
        jobs |= peer_jobs(residual, y0, direction)
    _, truth = reference(residual, y0, direction)

    def error(gradient):
        return max(
            float(np.abs(np.asarray(a) - b).max() / np.abs(b).max())
            for a, b in zip(gradient[1], truth, strict=True)
        )

    errors = {name: error(job.gradient()) for name, job in jobs.items()}
    seconds = {
        what: medians({name: getattr(job, what) for name, job in jobs.items()}, rounds=ROUNDS)
        for what in ("evaluation", "forward", "gradient")
    }
    table = Table(title=f"64 channels, 7 x 7, batch {BATCH} ({jax.devices()[0]})")
    columns = ("", "eval.", "forward, s", "x cost", "gradient, s", "x cost", "error", "held, MB")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    rows = {}
    for name, job in jobs.items():
        one = job.evaluations * seconds["evaluation"][name]
        forward, gradient = (seconds[what][name] for what in ("forward", "gradient"))
        rows[name] = {
            "evaluations": job.evaluations,
            "evaluation_seconds": seconds["evaluation"][name],
            "forward_seconds": forward,
            "gradient_seconds": gradient,
            "gradient_error": errors[name],
            "held_bytes": job.held,
        }
        table.add_row(
            name, str(job.evaluations), f"{forward:.2f}", f"{forward / one:.2f}",
            f"{gradient:.2f}", f"{gradient / (3 * one):.2f}", f"{errors[name]:.1e}",
            f"{job.held / 1e6:.0f}",
        )  # fmt: skip
    Console(width=110).print(table)
    for package in ("torch", "torchdiffeq", "torchode"):
        if importlib.util.find_spec(package):
            origin["versions"][package] = importlib.metadata.version(package)
    save_result(RESULT, KIND, origin | {"batch": BATCH, "rounds": ROUNDS, "jobs": rows})


if __name__ == "__main__":
    main()
