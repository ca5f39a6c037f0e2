"""Many devices give what one gives: training, checkpoints, evaluation; and data as it is read."""

import sys
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_resume import launch

import odejax
from odejax import _predictor
from odejax._mesh import replicate, spread, to_host, whole_batch
from odejax.attacks import APGD, PGD
from odejax.certificates import FlowMapSlope, LinearRelaxation
from odejax.data import ArrayDataset, StreamedDataset, load, random_crop
from odejax.evaluation import bracket, robust_accuracy
from odejax.models import BatchNorm, NmODENet, ResNet
from odejax.solvers import RelativeNoise
from odejax.training import Adversarial, CrossEntropy, FreeAdversarial, feed, fit

evaluated = sys.modules[robust_accuracy.__module__]
TRAIN = load("digits", "train").take(slice(256))
OBJECTIVES = {
    "natural": CrossEntropy(),
    "adversarial": Adversarial(PGD(2, None), odejax.LinfBall(0.1)),
    "free": FreeAdversarial(odejax.LinfBall(0.1), replays=2),
}


@cache
def started():
    # All that couples a batch or draws: batch statistics, noise in every layer, augmentation.
    make = eqx.nn.make_with_state(ResNet)
    settings = {"width": 8, "depth": 1, "noise": RelativeNoise(0.1), "norm": BatchNorm}
    return eqx.filter_jit(lambda key: make((8, 8, 1), key=key, **settings))(jax.random.key(0))


def train(objective=OBJECTIVES["natural"], dataset=TRAIN, epochs=2, key=1, **settings):
    return fit(
        *started(),
        dataset,
        objective,
        optax.sgd(0.05, momentum=0.9),
        epochs=epochs,
        batch_size=64,
        key=jax.random.key(key),
        augment=random_crop,
        progress=False,
        **settings,
    )


@cache
def on_one_device():
    return train()


def weights(result):
    return [to_host(leaf) for leaf in jax.tree.leaves(eqx.filter(result[:2], eqx.is_array))]


def assert_same(result, expected, tolerance):
    for actual, reference in zip(result.history, expected.history, strict=True):
        assert actual["loss"] == pytest.approx(reference["loss"], rel=tolerance)
    for actual, reference in zip(weights(result), weights(expected), strict=True):
        np.testing.assert_allclose(actual, reference, rtol=tolerance, atol=tolerance)


@pytest.fixture
def mesh():
    assert len(jax.devices()) == 8
    return odejax.batch_mesh()


@pytest.mark.parametrize("name", [pytest.param("adversarial", marks=pytest.mark.slow), "free"])
def test_training_on_eight_devices_is_training_on_one(name, mesh):
    expected = train(OBJECTIVES[name])
    with jax.set_mesh(mesh):
        result = train(OBJECTIVES[name])
    assert len(jax.tree.leaves(result.model)[0].sharding.device_set) == 8
    assert_same(result, expected, 1e-4)


def test_sharded_weights_are_cut_and_give_the_same(mesh):
    expected = on_one_device()
    with jax.set_mesh(mesh):
        result = train(shard_weights=True)
    assert_same(result, expected, 1e-4)
    parts = [
        leaf.addressable_shards[0].data.size / leaf.size
        for leaf in jax.tree.leaves(eqx.filter(result.model, eqx.is_inexact_array))
        if any(length % 8 == 0 for length in leaf.shape)
    ]
    assert parts
    assert all(part == 1 / 8 for part in parts)


@pytest.mark.parametrize(
    "first", ["eight devices", pytest.param("one device", marks=pytest.mark.slow)]
)
def test_a_checkpoint_goes_on_with_another_number_of_devices(first, mesh, tmp_path):
    expected = on_one_device()

    def on_eight(epochs):
        with jax.set_mesh(mesh):
            return train(epochs=epochs, checkpoint_dir=tmp_path, shard_weights=True)

    def on_one(epochs):
        return train(epochs=epochs, checkpoint_dir=tmp_path)

    before, after = (on_eight, on_one) if first == "eight devices" else (on_one, on_eight)
    before(1)
    assert_same(after(2), expected, 1e-4)


@pytest.mark.slow
def test_a_bracket_on_eight_devices_is_a_bracket_on_one(mesh):
    model, state = eqx.nn.make_with_state(NmODENet)((8, 8, 1), width=32, key=jax.random.key(0))
    trained = fit(
        model,
        state,
        TRAIN,
        CrossEntropy(),
        optax.adam(3e-3),
        epochs=20,
        batch_size=64,
        key=jax.random.key(1),
        progress=False,
    )
    # As a checkpoint that was read outside the mesh: bound to one device.
    one = jax.devices()[0]
    committed = jax.tree.map(
        lambda leaf: jax.device_put(leaf, one) if eqx.is_array(leaf) else leaf, trained.model
    )
    predictor = odejax.Predictor(committed, trained.state)

    def measure():
        # Nothing here is a multiple of eight.
        return bracket(
            predictor,
            *load("digits", "test").take(slice(50)),
            odejax.LinfBall(0.05),
            attacks={"PGD": PGD(10, None), "APGD": APGD(20)},
            certificates=[FlowMapSlope(), LinearRelaxation()],
            key=jax.random.key(2),
            batch_size=21,
            flag_images=10,
        )

    expected = measure()
    with jax.set_mesh(mesh):
        result = measure()
    assert 0.2 < expected.certified < expected.attacked < expected.clean
    np.testing.assert_array_equal(result.still_correct, expected.still_correct)
    np.testing.assert_array_equal(result.certified_correct, expected.certified_correct)
    np.testing.assert_allclose(result.radius, expected.radius, rtol=1e-4, atol=1e-6)
    assert {f.name for f in result.flags} == {f.name for f in expected.flags}


def test_a_batch_that_the_devices_do_not_divide_is_refused(mesh):
    with (
        jax.set_mesh(odejax.batch_mesh(jax.devices()[:3])),
        pytest.raises(ValueError, match="got 64"),
    ):
        train()


def test_a_mesh_with_explicit_axes_is_refused():
    explicit = jax.make_mesh((8,), ("batch",), (jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(explicit), pytest.raises(ValueError, match=r"AxisType\.Auto"):
        train()


def test_every_device_has_its_part_of_the_batch(mesh):
    seen = []

    class Spy(CrossEntropy):
        def __call__(self, model, state, images, labels, *, key):
            jax.debug.inspect_array_sharding(images, callback=seen.append)
            return super().__call__(model, state, images, labels, key=key)

    with jax.set_mesh(mesh):
        predictor = odejax.Predictor(*train(Spy(), epochs=1)[:2])
        keys = jax.random.key(0), jnp.asarray(0)
        logits = _predictor._batch_logits(predictor, spread(TRAIN.images[:64]), *keys)
    assert seen
    assert all(one.shard_shape((64, 8, 8, 1)) == (8, 8, 8, 1) for one in seen)
    assert logits.sharding.shard_shape(logits.shape) == (8, 10)


@pytest.mark.parametrize(("before", "after"), [(1, 8), pytest.param(8, 1, marks=pytest.mark.slow)])
def test_an_evaluation_goes_on_with_another_number_of_devices(before, after, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluated, "_SAVE_SECONDS", 0.0)
    data = load("digits", "test").take(slice(30))
    shape = (data.images[0].size, 10)
    attack, path, key = PGD(40, 0.003), tmp_path / "state.npz", jax.random.key(3)

    class Stop(Exception):
        pass

    def measure(devices, state_path, looks=None):
        weight = 3 * jax.random.normal(jax.random.key(4), shape)

        def logits_fn(x, *, key):
            return jnp.ravel(x) @ weight

        labels = odejax.predict(logits_fn, data.images, key=key).argmax(axis=1).astype(np.int32)
        save = evaluated._PeriodicState.save

        def interrupted(self, *arguments):
            save(self, *arguments)
            if looks is not None and path.exists():
                raise Stop

        monkeypatch.setattr(evaluated._PeriodicState, "save", interrupted)
        try:
            with jax.set_mesh(odejax.batch_mesh(jax.devices()[:devices])):
                return robust_accuracy(
                    logits_fn, data.pixels, labels, odejax.LinfBall(0.1), attack,
                    key=key, batch_size=21, state_path=state_path,
                )  # fmt: skip
        finally:
            monkeypatch.setattr(evaluated._PeriodicState, "save", save)

    expected = measure(1, None)
    assert 0 < expected.accuracy < 1
    with pytest.raises(Stop):
        measure(before, path, looks=1)
    result = measure(after, path)
    np.testing.assert_array_equal(result.still_correct, expected.still_correct)
    np.testing.assert_allclose(result.x_adv, expected.x_adv, atol=1e-6)
    np.testing.assert_array_equal(result.queries, expected.queries)


class Rows:
    """A data source that remembers what was read of it."""

    def __init__(self, dataset=TRAIN):
        self.dataset, self.read = dataset, []

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, i):
        self.read.append(i)
        return {"image": self.dataset.images[i], "label": self.dataset.labels[i]}


def stream(devices, name, folder):
    """A run on data as it is read, interrupted once, and the same run in memory."""
    feed._WINDOW_BYTES = 3 * 64 * 64  # windows of 3, then 1
    rows = Rows()
    with jax.set_mesh(odejax.batch_mesh(jax.devices()[: int(devices)])):
        expected = train(OBJECTIVES[name])
        streamed = StreamedDataset(rows, 10)
        train(OBJECTIVES[name], streamed, epochs=1, checkpoint_dir=folder)
        result = train(OBJECTIVES[name], streamed, checkpoint_dir=folder)
    assert set(range(len(TRAIN))) <= set(rows.read)
    assert len(rows.read) < 2 * len(TRAIN) + 40  # twice over, and some for the digest
    assert_same(result, expected, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "name"), [(1, "natural"), (8, "free")])
def test_a_streamed_run_is_the_run_in_memory_bit_for_bit(devices, name, tmp_path):
    # A process of its own: XLA's older code for fused loops, by which tests are compiled, rounds
    # these two programs differently.
    flags = "--xla_backend_optimization_level=0"
    process = launch(__file__, devices, name, tmp_path, JAX_NUM_CPU_DEVICES="8", XLA_FLAGS=flags)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]


@pytest.mark.parametrize("part", [1, 3 * 64, 2**20])
def test_a_stream_has_the_rows_in_order_whatever_a_thread_reads_at_once(part, monkeypatch):
    monkeypatch.setattr("odejax.data.stream._PART_BYTES", part)
    calls = []

    class Batched(Rows):
        def __getitems__(self, rows):
            calls.append(len(rows))
            return [self[i] for i in rows]

    order = np.random.default_rng(0).permutation(len(TRAIN))[:23]
    batches = list(StreamedDataset(Batched(), 10).read(order, 8))
    assert [len(images) for images, _ in batches] == [8, 8, 7]
    np.testing.assert_array_equal(np.concatenate([b[0] for b in batches]), TRAIN.images[order])
    np.testing.assert_array_equal(np.concatenate([b[1] for b in batches]), TRAIN.labels[order])
    assert max(calls) == min(8, max(1, part // 64))


def test_a_stream_names_what_it_cannot_take():
    with pytest.raises(ValueError, match="no images"):
        StreamedDataset([], 10)
    image = np.zeros((8, 8, 1), np.uint8)
    for row, message in (
        ({"image": image, "label": 12}, "that of image 1 is 12"),
        ({"image": image[:4], "label": 1}, r"image 1 .* is uint8 of shape \(4, 8, 1\)"),
        ({"image": image / 255, "label": 1}, "image 1 .* is float64"),
    ):
        stream = StreamedDataset([{"image": image, "label": 0}, row], 10)
        with pytest.raises(ValueError, match=message):
            list(stream.read(np.arange(2), 2))
    half = StreamedDataset([{"image": image, "label": 0}], transform=lambda image: image[:4])
    assert half.image_shape == (4, 8, 1)


def test_a_run_of_other_data_is_not_continued(tmp_path):
    train(dataset=StreamedDataset(Rows(), 10), epochs=1, checkpoint_dir=tmp_path)
    other = ArrayDataset(255 - TRAIN.images, TRAIN.labels)
    with pytest.raises(RuntimeError, match="another dataset"):
        train(dataset=StreamedDataset(Rows(other), 10), checkpoint_dir=tmp_path)


def test_without_a_mesh_arrays_stay_where_they_are():
    x = jnp.ones((6, 2))
    assert spread(x) is x
    assert replicate(x) is x
    assert whole_batch(6) == 6


if __name__ == "__main__":
    stream(*sys.argv[1:])
