"""One attack on many examples, by continuous batching: a slot of the batch is never idle for long.

Every slot of the batch holds one example at a step of its own. When the attack on it has succeeded,
or has taken its last step, the next example of the queue takes the slot. So no evaluation is spent
on an example that is done, and one shape is compiled for all. The result of an example depends on
its own key alone: not on the batch size, the order, or where the loop was interrupted.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._mesh import agreed, on_mesh, spread, to_host, whole_batch
from .._threat_model import AbstractBall
from .._types import Key, LogitsFn
from ..attacks import AbstractIterativeAttack, AttackProblem, BestAdversarial, start, step

_CHUNK_SECONDS = 0.25  # between two looks at which examples are done
_COMPILE_SECONDS: list[float] = []  # of first calls in this process


class Slots(NamedTuple):
    """The examples in work; arrays of as many rows as the batch has slots."""

    index: np.ndarray  # of the example, or -1
    run: np.ndarray
    i: np.ndarray  # the next step of the run
    state: Any
    run_key: Any


class SingleStep(AbstractIterativeAttack):
    """Any `attack(logits_fn, x, y, ball, key=key) -> AttackResult`, as an attack of one step."""

    attack: Callable
    n_runs: ClassVar[int] = 1
    n_steps: ClassVar[int] = 1
    random: ClassVar[bool] = True
    black_box: ClassVar[bool] = False

    def start(self, problem: AttackProblem, adversarial: BestAdversarial, run, *, key: Key) -> Any:
        return _SingleStepState(adversarial)

    def step(self, problem: AttackProblem, state: Any, i, *, key: Key) -> Any:
        result = self.attack(problem.logits_fn, problem.x, problem.y, problem.ball, key=key)
        queries, finite = jnp.asarray(result.queries), ~jnp.isnan(result.margin)
        broken, yes = result.margin < 0, jnp.asarray(True)
        return _SingleStepState(
            BestAdversarial(result.x_adv, result.margin, queries, finite, broken, yes)
        )


class _SingleStepState(eqx.Module):
    adversarial: BestAdversarial


class AttackLoop:
    """Attacks `targets` (indices into `images`), and writes into `x_adv`, `queries`, `no_start`.

    `advance()` takes a few steps; `slots` and `queue` are all there is to save.
    """

    def __init__(
        self,
        attack: Callable,
        logits_fn: LogitsFn,
        images: np.ndarray,
        labels: np.ndarray,
        ball: AbstractBall,
        *,
        targets: np.ndarray,
        x_adv: np.ndarray,
        queries: np.ndarray,
        no_start: np.ndarray,
        key: Key,
        batch_size: int,
        stop_at_first_success: bool,
    ):
        iterative = isinstance(attack, AbstractIterativeAttack)
        self.attack: AbstractIterativeAttack = attack if iterative else SingleStep(attack)
        self.project = iterative
        self.logits_fn = on_mesh(logits_fn)
        self.ball, self.key = ball, key
        self.stop_at_first_success = stop_at_first_success
        self.images, self.labels = images, labels
        self.x_adv, self.queries, self.no_start = x_adv, queries, no_start
        self.queue = np.asarray(targets)
        self.loop = not _slow_in_loops(logits_fn, images[0])
        self.chunk, self.compiled, self.step_seconds = 1, False, 0.0
        free = np.full(whole_batch(batch_size), -1)
        self.slots = Slots(free, np.zeros_like(free), np.zeros_like(free), None, None)

    @property
    def unfinished(self) -> bool:
        return len(self.queue) > 0 or bool((self.slots.index >= 0).any())

    @property
    def done(self) -> float:
        """Examples in work, in fractions of an example's whole work."""
        busy, attack = self.slots.index >= 0, self.attack
        steps = self.slots.run * attack.n_steps + self.slots.i
        return float(steps[busy].sum()) / (attack.n_runs * attack.n_steps)

    def advance(self) -> int:
        """Fill the slots, work for about a quarter of a second, and return how many are done."""
        self._fill()
        started = time.perf_counter()
        slots = self.slots
        state, i, broken = slots.state, jnp.asarray(slots.i), None
        busy = jnp.asarray(slots.index >= 0)
        stop = jnp.asarray(self.stop_at_first_success)
        batch = _Batch(*self._problems(), slots.run_key, busy, stop)
        if self.loop:
            chunk = jnp.asarray(self.chunk)
            state, i, broken = _advance(self.attack, self.logits_fn, batch, i, state, chunk)
        else:
            for _ in range(self.chunk):
                state, i, broken = _advance_once(self.attack, self.logits_fn, batch, i, state)
        i, broken = np.array(to_host(i)), to_host(broken)
        self._set_pace(agreed(time.perf_counter() - started), int((i - slots.i).max()))
        run = slots.run.copy()
        ended = (slots.index >= 0) & (broken | (i >= self.attack.n_steps))
        last = ended & (broken | (run + 1 >= self.attack.n_runs))
        run[ended & ~last] += 1
        i[ended] = 0
        self.slots = slots._replace(state=state, run=run, i=i)
        if last.any():
            self._harvest(np.flatnonzero(last))
        if (again := ended & ~last).any():
            self._start(again, fresh=np.zeros_like(again))
        self._shrink()
        return int(last.sum())

    def save(self) -> dict[str, np.ndarray]:
        """All that is needed to go on from here, as arrays."""
        slots = self.slots
        arrays = {"queue": self.queue, "index": slots.index, "run": slots.run, "i": slots.i}
        if slots.state is not None:
            arrays["run_key"] = to_host(jax.random.key_data(slots.run_key))
            leaves = jax.tree.leaves(slots.state)
            arrays |= {f"state{k}": to_host(leaf) for k, leaf in enumerate(leaves)}
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray]):
        """Go on from what `save` returned."""
        # With free slots added, as many as the devices of this mesh ask for.
        more = whole_batch(len(arrays["index"])) - len(arrays["index"])
        index, run, i = (
            np.pad(arrays[name], (0, more), constant_values=free)
            for name, free in (("index", -1), ("run", 0), ("i", 0))
        )
        self.queue, self.slots = np.array(arrays["queue"]), Slots(index, run, i, None, None)
        if "run_key" not in arrays:
            return
        every_slot = np.ones(len(index), bool)
        self._start(every_slot, fresh=every_slot)  # for the structure of the state

        def padded(rows):
            return spread(jnp.asarray(np.concatenate([rows, np.repeat(rows[:1], more, axis=0)])))

        leaves = [padded(arrays[name]) for name in arrays if name.startswith("state")]
        self.slots = self.slots._replace(
            state=jax.tree.unflatten(jax.tree.structure(self.slots.state), leaves),
            run_key=jax.random.wrap_key_data(
                padded(arrays["run_key"]), impl=jax.random.key_impl(self.key)
            ),
        )

    def _problems(self) -> tuple[Any, Any, AbstractBall]:
        index = np.maximum(self.slots.index, 0)
        return spread(self.images[index]), spread(self.labels[index]), self.ball

    def _fill(self):
        free = np.flatnonzero(self.slots.index < 0)
        # Starting costs a batch: not for a single free slot of many.
        busy = len(self.slots.index) - len(free)
        if len(self.queue) == 0 or (busy and len(free) < len(self.slots.index) // 8):
            return
        free = free[: len(self.queue)]
        taken, self.queue = self.queue[: len(free)], self.queue[len(free) :]
        index, run, i = self.slots.index.copy(), self.slots.run.copy(), self.slots.i.copy()
        index[free], run[free], i[free] = taken, 0, 0
        self.slots = self.slots._replace(index=index, run=run, i=i)
        fresh = np.zeros(len(index), bool)
        fresh[free] = True
        self._start(fresh, fresh=fresh)

    def _start(self, which: np.ndarray, *, fresh: np.ndarray):
        """Start the current run of the slots `which`; those of `fresh` with a new example."""
        index, run, _, state, run_key = self.slots
        images, labels, ball = self._problems()
        new = _start(
            self.attack,
            self.logits_fn,
            images,
            labels,
            ball,
            None if state is None else state.adversarial,
            jnp.asarray(fresh),
            jnp.asarray(run),
            jnp.asarray(np.maximum(index, 0)),
            self.key,
        )
        if state is not None:
            new = _select(jnp.asarray(which), new, (state, run_key))
        self.slots = self.slots._replace(state=new[0], run_key=new[1])

    def _harvest(self, slots: np.ndarray):
        adversarial = self.slots.state.adversarial
        x_adv = (
            _project(adversarial.x_adv, *self._problems()) if self.project else adversarial.x_adv
        )
        index = self.slots.index.copy()
        bad = index[slots][~to_host(adversarial.finite)[slots]]
        if len(bad):
            raise FloatingPointError(
                f"the logits are not finite at images that the attack tried on image {bad[0]}: the "
                f"network diverges within the ball, or an ODE solve hits its step limit"
            )
        self.x_adv[index[slots]] = to_host(x_adv)[slots]
        self.queries[index[slots]] += to_host(adversarial.queries)[slots]
        self.no_start[index[slots]] &= ~to_host(adversarial.attacked)[slots]
        index[slots] = -1
        self.slots = self.slots._replace(index=index)

    def _set_pace(self, seconds: float, steps: int):
        if not self.compiled:
            self.compiled = True
            _COMPILE_SECONDS.append(seconds)
            return
        self.step_seconds = seconds / max(steps, 1)
        self.chunk = int(np.clip(_CHUNK_SECONDS / self.step_seconds, 1, 4 * self.chunk))

    def _shrink(self):
        """A smaller batch for the last examples, where that saves more than compiling it costs."""
        busy = np.flatnonzero(self.slots.index >= 0)
        size = len(self.slots.index)
        smaller = whole_batch(size // 4)
        if smaller >= size or len(self.queue) or len(busy) == 0 or len(busy) > smaller:
            return
        attack, slots = self.attack, self.slots
        steps = (attack.n_runs - slots.run[busy]) * attack.n_steps - slots.i[busy]
        if int(steps.max()) * self.step_seconds < 2 * max(_COMPILE_SECONDS):
            return
        # Busy slots first, free ones to make up the number.
        keep = np.concatenate([busy, np.flatnonzero(slots.index < 0)])[:smaller]
        index, run, i = (rows[keep] for rows in slots[:3])
        self.slots = Slots(index, run, i, *_take((slots.state, slots.run_key), keep))
        self.compiled = False


@eqx.filter_jit
def _start(attack, logits_fn, images, labels, ball, adversarial, fresh, run, index, key):
    def one(x, y, adversarial, fresh, run, index):
        problem, new = AttackProblem(logits_fn, x, y, ball), BestAdversarial.none(x)
        if adversarial is not None:
            new = jax.tree.map(lambda a, b: jnp.where(fresh, a, b), new, adversarial)
        return start(attack, problem, new, run, jax.random.fold_in(key, index))

    return spread(jax.vmap(one)(images, labels, adversarial, fresh, run, index))


class _Batch(NamedTuple):
    """What stays the same while a batch is worked on."""

    images: Any
    labels: Any
    ball: AbstractBall
    run_key: Any
    busy: Any
    stop: Any

    def broken(self, state):
        return state.adversarial.sure & self.stop

    def going(self, attack, i, state):
        return self.busy & (i < attack.n_steps) & ~self.broken(state)


@eqx.filter_jit
def _advance(attack, logits_fn, batch: _Batch, i, state, chunk):
    """Up to `chunk` steps of every busy slot whose run has not ended."""

    def unfinished(carry):
        k, i, state = carry
        return (k < chunk) & jnp.any(batch.going(attack, i, state))

    def body(carry):
        k, i, state = carry
        return k + 1, *_step(attack, logits_fn, batch, i, state)

    _, i, state = jax.lax.while_loop(unfinished, body, (0, i, state))
    return state, i, batch.broken(state)


@eqx.filter_jit
def _advance_once(attack, logits_fn, batch: _Batch, i, state):
    """`_advance` by one step, for networks that are slow inside a loop."""
    i, state = _step(attack, logits_fn, batch, i, state)
    return state, i, batch.broken(state)


def _step(attack, logits_fn, batch: _Batch, i, state):
    def one(x, y, run_key, i, state):
        return step(attack, AttackProblem(logits_fn, x, y, batch.ball), run_key, i, state)

    going = batch.going(attack, i, state)
    new = jax.vmap(one)(batch.images, batch.labels, batch.run_key, i, state)
    return i + going, spread(_select(going, new, state))


def _slow_in_loops(logits_fn, image) -> bool:
    """Whether XLA's CPU backend would run the network tens of times slower inside a loop.

    It does so with its own convolutions (jax-ml/jax issue 12868), not with `models.conv2d`.
    """
    if jax.default_backend() != "cpu":
        return False
    jaxpr = jax.make_jaxpr(lambda x: logits_fn(x, key=jax.random.key(0)))(jnp.asarray(image))
    return "conv_general_dilated" in str(jaxpr)


@eqx.filter_jit
def _project(x_adv, images, labels, ball):
    return jax.vmap(ball.project)(x_adv, images)


@jax.jit
def _take(tree, rows):
    return spread(jax.tree.map(lambda leaf: leaf[rows], tree))


@jax.jit
def _select(which, new, old):
    """`new` in the rows of `which`, `old` elsewhere."""

    def choose(a, b):
        return jnp.where(which.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, new, old)
